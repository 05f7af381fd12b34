"""Requests for the model ``auto``: embeds the prompt, chooses an adapter, and submits the request with it."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from fastapi import Request

from server.api.core.access.caller import current_caller
from server.api.core.bodies.translation import translate_errors
from server.api.core.choice.adapter_choice import AdapterChoice
from server.api.core.choice.auto_choice import AutoChoice, RoutingOptions
from server.api.core.choice.nearest_adapter import Choice, choose
from server.api.core.choice.profiles import Profile, Vectors
from server.api.core.errors.api_errors import InvalidRequestError
from server.api.core.requests.disconnect import unless_client_leaves
from server.api.core.requests.embedding import Embedding
from server.api.core.requests.generation import Generation
from server.api.core.requests.loaded_model import LoadedModel
from server.engine.interface import (
    DeadlineExceededError,
    EngineError,
    ExpertUsage,
    PromptTooLongError,
    RequestRefusedError,
    UnknownAdapterError,
)

MAX_TOKENS = 256  # of a text that is compared; more made no choice better
MAX_TEXTS = 32  # of a request that are compared
CHARACTERS_PER_TOKEN = 8  # at most these of a text are tokenized
MAX_TURNS = 4  # of a chat that are compared
TURN_DECAY = 0.4  # weight of a turn of a chat, divided by that of the next one
TELLING_TOKENS = 12  # a turn with fewer, such as "And then?", tells less of the topic

NO_ALLOWED = "'model' is 'auto', but no adapter that this key may use is close to the prompt: name a model."

Texts = Sequence[str | Sequence[int]]  # texts, or their tokens

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AutoRequest:
    """A request for the model ``auto``.

    Args:
        model: the model ``auto``.
        texts: the prompts, or what matters of them; of a chat, the user's turns.
        field: the body's field that holds the prompts, for error messages.
        adapters: those that the request names, which are not chosen again.
        time_limit: of the request in seconds, from now on.
        is_chat: the texts are turns, of which the last one counts most.

    """

    model: LoadedModel
    texts: Texts
    field: str
    options: RoutingOptions | None = None
    adapters: Sequence[AdapterChoice] = ()
    priority: int = 0
    time_limit: float | None = None
    is_chat: bool = False


async def submit_to_chosen(
    request: Request, asked: AutoRequest, submit: Callable[[LoadedModel], Generation]
) -> Generation:
    """Choose an adapter for a request, and submit it; the next best one if an adapter is unloaded meanwhile.

    Args:
        submit: submits the request to a model.

    Raises:
        APIError: the client left meanwhile, or the prompt is not valid.
        EngineError: the engine does not take the prompt or the request, or not now.

    """
    model, prompt, started_at = asked.model, _Prompt(asked), time.monotonic()
    assert model.directory is not None
    try:
        async with asyncio.timeout(asked.time_limit):
            with translate_errors({"input": asked.field}):
                await unless_client_leaves(request.receive, prompt.embed(request))
            profiles = await unless_client_leaves(request.receive, profiles_of(model))
    except TimeoutError as error:
        raise DeadlineExceededError(f"the request was not done within {asked.time_limit:g} seconds") from error
    named = {each.name: each.weight for each in asked.adapters}
    policy = current_caller().policy
    profiles = {
        name: profile
        for name, profile in profiles.items()
        if name not in named and (policy is None or policy.allows(name))
    }
    threshold = None if asked.options is None else asked.options.threshold
    while True:
        choice = await asyncio.to_thread(choose, prompt.vector, profiles, threshold)
        if choice.name is None and policy is not None and not policy.allows(model.base or model.name):
            raise InvalidRequestError(NO_ALLOWED, "model")
        auto_choice = _auto_choice(choice, model, prompt, started_at)
        try:
            generation = submit(model.chosen(choice.name, [*named.items()], auto_choice))
        except UnknownAdapterError:
            if choice.name is None:
                raise
            del profiles[choice.name]
        else:
            model.directory.note_routed(choice.name)
            return generation


async def embed_texts(model: LoadedModel, texts: Texts) -> Vectors:
    """Return the direction of each text's embedding by the base model, ``(texts, hidden)``.

    Raises:
        RequestRefusedError: they have no tokens.
        EngineError: the engine does not take them, or fails.

    """
    tokens = await asyncio.to_thread(_tokens, model, texts)
    if not tokens:
        raise RequestRefusedError("its examples have no tokens")
    # One by one: the queue may hold fewer than there are, and is for requests.
    embedding = Embedding(model, tokens, "mean", id_prefix="route-", max_concurrent=1, is_internal=True)
    events = await embedding.events()
    return _directions([event.embedding for event in events if event.embedding is not None])


async def profiles_of(model: LoadedModel) -> dict[str, Profile]:
    """Return the profiles of the adapters that can be chosen now, by name.

    Raises:
        EngineError: the engine is too busy to compute one, or dead.

    """
    candidates = [] if model.directory is None else model.directory.candidates()
    return await model.profiles.of(candidates, lambda texts: embed_texts(model, texts))


async def learn_examples(model: LoadedModel) -> None:
    """Compute the profiles of all adapters that take part in routing, so that no request waits for them."""
    if not model.has_candidates:
        return
    try:
        await profiles_of(model)
    except EngineError as error:
        log.info("the examples of adapters are embedded when a request needs them: %s", error)


class _Prompt:
    """The prompts of a request, and their common direction."""

    def __init__(self, asked: AutoRequest) -> None:
        self.vector: npt.NDArray[np.float32] | None = None  # None without text
        self.num_tokens, self.expert_usage = 0, ExpertUsage()
        self._asked = asked

    async def embed(self, request: Request) -> None:
        asked = self._asked
        texts = asked.texts[-MAX_TURNS:] if asked.is_chat else asked.texts[:MAX_TEXTS]
        tokens = await asyncio.to_thread(_tokens, asked.model, texts)
        if not tokens:
            return
        embedding = Embedding(
            asked.model,
            tokens,
            "mean",
            priority=asked.priority,
            timeout=asked.time_limit,
            id_prefix="route-",
            is_internal=True,
        )
        request.state.work = embedding
        events = await embedding.events()
        embedding.release()
        vectors = _directions([event.embedding for event in events if event.embedding is not None])
        weights = turn_weights([len(each) for each in tokens]) if asked.is_chat else None
        self.vector = _directions([np.average(vectors, axis=0, weights=weights)])[0]
        self.num_tokens, self.expert_usage = embedding.num_prompt_tokens, embedding.expert_usage


def turn_weights(num_tokens: Sequence[int]) -> npt.NDArray[np.float32]:
    """Return the weights of the turns of a chat by their tokens: the last one counts most, and short ones count less.

    A short turn asks for more of the topic before it, or of none.
    """
    ages = np.arange(len(num_tokens))[::-1]
    return (TURN_DECAY**ages * np.minimum(num_tokens, TELLING_TOKENS) / TELLING_TOKENS).astype(np.float32)


def _tokens(model: LoadedModel, texts: Texts) -> list[list[int]]:
    """Return the first tokens of each text that has some; may block."""
    tokens = [
        _encode(model, text[: MAX_TOKENS * CHARACTERS_PER_TOKEN]) if isinstance(text, str) else [*text[:MAX_TOKENS]]
        for text in texts
    ]
    limit = min(MAX_TOKENS, model.engine.max_model_len)
    return [each[:limit] for each in tokens if each]


def _encode(model: LoadedModel, text: str) -> list[int]:
    if not text.strip():
        return []
    try:
        return model.codec.encode(text)
    except PromptTooLongError:  # more tokens than characters allow for, in a small context
        return model.codec.encode(text[: model.engine.max_model_len // 4])


def _directions(vectors: Sequence[npt.NDArray[np.float32]]) -> Vectors:
    stacked = np.stack(vectors).astype(np.float64)
    lengths = np.linalg.norm(stacked, axis=1, keepdims=True)
    return (stacked / np.where(lengths == 0, 1, lengths)).astype(np.float32)


def _auto_choice(choice: Choice, model: LoadedModel, prompt: _Prompt, started_at: float) -> AutoChoice:
    base = model.base or model.name
    return AutoChoice(
        "embedding",
        base if choice.name is None else choice.name,
        {base if name is None else name: score for name, score in choice.scores.items()},
        reason=choice.reason,
        num_tokens=prompt.num_tokens,
        started_at=started_at,
        ended_at=time.monotonic(),
        expert_usage=prompt.expert_usage,
    )
