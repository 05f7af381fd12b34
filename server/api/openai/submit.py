"""Submits the prompts of a request to the engine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import uuid4

from fastapi import Request

from server.api.core.access.caller import current_caller
from server.api.core.errors.api_errors import InvalidRequestError
from server.api.core.requests.auto_request import AutoRequest, Texts, submit_to_chosen
from server.api.core.requests.cost import FIRST_TOKENS, ReplyForm, RequestCost
from server.api.core.requests.disconnect import unless_client_leaves
from server.api.core.requests.generation import Generation
from server.api.core.requests.loaded_model import LoadedModel
from server.api.openai.bodies import GenerationBody
from server.api.openai.choice_sampling import max_tokens_for, sampling_params
from server.api.openai.muted_tokens import NONE_MUTED, MutedTokens
from server.engine.interface import (
    ExpertUsage,
    GenerationRequest,
    Grammar,
    Media,
    Reservation,
    TokenStream,
)

MAX_CHOICES = 128


@dataclass(frozen=True)
class Admitted:
    """A request that has the memory which it may need.

    Args:
        max_tokens: tokens that each choice generates at most, by prompt.
        reservation: that memory.

    """

    prompts: Sequence[tuple[int, ...]]
    max_tokens: Sequence[int]
    cost: RequestCost
    reservation: Reservation


async def admit(
    request: Request,
    model: LoadedModel,
    body: GenerationBody,
    *,
    prompts: Sequence[Sequence[int]],
    prompt_field: str,
    form: ReplyForm,
) -> Admitted:
    """Reserve the memory that a request may need, and wait for it while other requests hold it.

    Pass the result to ``submit_to``, which releases the memory if the request can't be submitted.

    Args:
        prompt_field: the body's field that holds the prompts, for error messages.
        form: what a complete reply holds.

    Raises:
        InvalidRequestError: there are too many choices, or a prompt does not fit the model.
        RequestRefusedError: the server can never hold what the request asks for.
        RequestMemoryError: other requests hold the memory.
        ClientDisconnectedError: the client left meanwhile.
        RateLimitError: the caller asks for more choices than a limit allows.

    """
    current_caller().check_priority(body.priority)
    if len(prompts) * body.n > MAX_CHOICES:
        raise InvalidRequestError(
            f"{len(prompts)} prompts with n={body.n} are more than {MAX_CHOICES} choices: split the request.",
            prompt_field,
        )
    limits = [max_tokens_for(len(prompt), model.engine.max_model_len, body, prompt_field) for prompt in prompts]
    cost = RequestCost(
        [len(prompt) for prompt in prompts],
        body.n,
        limits if body.requested_max_tokens is not None else [min(limit, FIRST_TOKENS) for limit in limits],
        num_logprobs=0 if body.num_logprobs is None else 1 + body.num_logprobs,
        num_prompt_logprobs=0 if body.num_prompt_logprobs is None else 1 + body.num_prompt_logprobs,
        form=form,
        is_stream=body.stream,
    )
    reservation = model.memory.reserve()
    if not reservation.take_now(cost.nbytes):
        taking = reservation.take(cost.nbytes, *_reason(cost, prompt_field))
        await unless_client_leaves(request.receive, taking)
    return Admitted([*map(tuple, prompts)], limits, cost, reservation)


def _reason(cost: RequestCost, prompt_field: str) -> tuple[str, str]:
    """Return what needs the memory of a request, and the field to change."""
    if cost.num_logprobs or cost.num_prompt_logprobs:
        return "The logprobs that the request asks for", "logprobs"
    return ("The choices of the request", "n") if cost.num_choices > 1 else ("The request", prompt_field)


def submit(
    model: LoadedModel,
    body: GenerationBody,
    admitted: Admitted,
    *,
    id_prefix: str,
    prompt_field: str,
    media: Media | None = None,
    grammar: Grammar | None = None,
    written_tokens: frozenset[int] = frozenset(),
    muted: MutedTokens = NONE_MUTED,
) -> Generation:
    """Submit every choice to the engine, or none. Call it from the event loop.

    Args:
        admitted: the prompts, and the memory of the request.
        prompt_field: the body's field that holds the prompts, for error messages.
        media: images; there is only one prompt then.
        grammar: the grammar that every choice follows; held here until the engine has it.
        written_tokens: special tokens that are part of the text.
        muted: tokens that are not generated.

    Raises:
        RateLimitError: the caller has to wait.
        EngineError: the engine does not take the request, or not now.

    """
    caller, prompts = current_caller(), admitted.prompts
    caller.count_choices(len(prompts) * body.n, "n" if body.n > 1 else prompt_field)
    generation_id, cache_salt = f"{id_prefix}{uuid4().hex}", caller.cache_salt(body.cache_salt)
    streams: list[TokenStream] = []
    spec = None if grammar is None else grammar.spec
    try:
        for prompt, max_tokens in zip(prompts, admitted.max_tokens, strict=True):
            for choice in range(body.n):
                request_id = f"{generation_id}-{len(streams)}"
                sampling = sampling_params(
                    body,
                    model.defaults,
                    max_tokens,
                    choice=choice,
                    grammar=spec,
                    written_tokens=written_tokens,
                    muted=muted,
                )
                request = GenerationRequest(
                    request_id,
                    prompt,
                    sampling,
                    priority=body.priority,
                    deadline_seconds=body.timeout,
                    media=media,
                    returns_experts=body.return_experts,
                    keeps_stalls=model.keeps_stalls,
                    weights=model.weights,
                    spent_seconds=0.0 if model.auto_choice is None else model.auto_choice.seconds,
                    returns_adapters=body.return_adapters,
                    cache_salt=cache_salt,
                    session=caller.session,
                )
                streams.append(model.engine.submit(request))
    except Exception:
        for stream in streams:
            stream.cancel()
        raise
    num_prompt_tokens = sum(map(len, prompts))
    auto_choice = model.auto_choice
    generation = model.unfinished[generation_id] = Generation(
        generation_id,
        model.name,
        num_prompt_tokens,
        streams,
        body.n,
        returns_experts=body.return_experts,
        returns_adapters=body.return_adapters,
        reservation=admitted.reservation,
        unread_bytes=admitted.cost.unread_bytes,
        auto_choice=auto_choice,
        adapters={} if model.weights is None else model.weights.factors,
        ignored_fields=body.ignored_fields,
        expert_usage=ExpertUsage() if auto_choice is None else auto_choice.expert_usage,
    )
    return generation


async def submit_to(
    request: Request,
    model: LoadedModel,
    body: GenerationBody,
    *,
    admitted: Admitted,
    texts: Callable[[], Texts],
    field: str,
    submitting: Callable[[LoadedModel], Generation],
    is_chat: bool = False,
) -> Generation:
    """Submit a request to the model that it names, or to what a router chooses for the model ``auto``.

    Args:
        admitted: its memory is released if the request is not submitted.
        texts: returns what the router compares with the examples of adapters.
        field: the body's field that holds the prompts, for error messages.
        submitting: submits the request to a model.
        is_chat: the texts are the user's turns in a chat.

    Raises:
        APIError: the request is not valid, or the client left meanwhile.
        EngineError: the engine does not take the request, or not now.

    """
    try:
        generation = await _submit_to(
            request, model, body, texts=texts, field=field, submitting=submitting, is_chat=is_chat
        )
    except BaseException:
        admitted.reservation.release()
        raise
    if generation.is_accepted:
        return generation
    try:
        await unless_client_leaves(request.receive, generation.accepted())
    except BaseException:
        generation.cancel()
        raise
    return generation


async def _submit_to(
    request: Request,
    model: LoadedModel,
    body: GenerationBody,
    *,
    texts: Callable[[], Texts],
    field: str,
    submitting: Callable[[LoadedModel], Generation],
    is_chat: bool,
) -> Generation:
    by_token = None if body.routing is None else body.routing.by_token
    if model.is_auto and by_token is not None:
        return submitting(model.choosing_by_token([(each.name, each.weight) for each in body.adapters], by_token))
    if model.is_auto:
        asked = AutoRequest(
            model,
            texts(),
            field,
            options=body.routing,
            adapters=body.adapters,
            priority=body.priority,
            time_limit=body.timeout,
            is_chat=is_chat,
        )
        return await submit_to_chosen(request, asked, submitting)
    if body.routing is not None:
        raise InvalidRequestError("'routing' is for the model 'auto' only: ask for it, or leave it out.", "routing")
    return submitting(model)
