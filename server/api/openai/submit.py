"""Submits the prompts of a request to the engine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from uuid import uuid4

from fastapi import Request

from server.api.core.access.caller import current_caller
from server.api.core.errors.api_errors import ContextLengthError, InvalidRequestError
from server.api.core.requests.auto_request import AutoRequest, Texts, submit_to_chosen
from server.api.core.requests.cost import FIRST_TOKENS, ReplyForm, RequestCost
from server.api.core.requests.disconnect import unless_client_leaves
from server.api.core.requests.generation import Generation
from server.api.core.requests.loaded_model import LoadedModel
from server.api.openai.bodies import GenerationBody
from server.api.openai.muted_tokens import NONE_MUTED, MutedTokens
from server.engine.interface import (
    ExpertUsage,
    GenerationRequest,
    Grammar,
    GrammarSpec,
    Media,
    Reservation,
    SamplingDefaults,
    SamplingParams,
    TokenStream,
)

MAX_CHOICES = 128
SEED_BYTES = 8


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
                    spent_seconds=0.0 if model.routing is None else model.routing.seconds,
                    returns_adapters=body.return_adapters,
                    cache_salt=cache_salt,
                )
                streams.append(model.engine.submit(request))
    except Exception:
        for stream in streams:
            stream.cancel()
        raise
    num_prompt_tokens = sum(map(len, prompts))
    routing = model.routing
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
        routing=routing,
        adapters={} if model.weights is None else model.weights.factors,
        expert_usage=ExpertUsage() if routing is None else routing.expert_usage,
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
        return await _submit_to(request, model, body, texts=texts, field=field, submitting=submitting, is_chat=is_chat)
    except BaseException:
        admitted.reservation.release()
        raise


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
        return submitting(model.routing_tokens([(each.name, each.weight) for each in body.adapters], by_token))
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


def max_tokens_for(num_prompt_tokens: int, max_model_len: int, body: GenerationBody, prompt_field: str) -> int:
    """Return the token limit of a completion. The default limit is cut to what fits the model, a requested one is not.

    Raises:
        ContextLengthError: the prompt leaves no tokens for the completion, or fewer than requested.

    """
    num_left = max_model_len - num_prompt_tokens
    requested = None if body.is_unlimited else body.requested_max_tokens
    if body.is_unlimited and num_left >= 1:
        return num_left
    if requested is None and num_left >= 1:
        return min(num_left, body.default_max_tokens or num_left)
    if requested is not None and (requested <= num_left or (body.may_cut_max_tokens and num_left >= 1)):
        return min(requested, num_left)
    num_wanted = 1 if requested is None else requested
    raise ContextLengthError(
        f"This model's maximum context length is {max_model_len} tokens. However, you requested "
        f"{num_prompt_tokens + num_wanted} tokens ({num_prompt_tokens} in the prompt, {num_wanted} in the completion). "
        f"Please reduce the length of the prompt or of the completion.{body.parts_of_prompt}",
        prompt_field,
    )


def sampling_params(
    body: GenerationBody,
    defaults: SamplingDefaults,
    max_tokens: int,
    *,
    choice: int,
    grammar: GrammarSpec | None = None,
    written_tokens: frozenset[int] = frozenset(),
    muted: MutedTokens = NONE_MUTED,
) -> SamplingParams:
    """Return the sampling parameters of one choice of a prompt.

    Raises:
        InvalidRequestError: ``min_tokens`` is above ``max_tokens``.

    """
    if defaults.max_new_tokens is not None:
        max_tokens = min(max_tokens, defaults.max_new_tokens)
    if body.min_tokens > max_tokens:
        raise InvalidRequestError(
            f"'min_tokens' is {body.min_tokens}, but at most {max_tokens} tokens are generated: lower it.", "min_tokens"
        )
    repetition_penalty = body.repetition_penalty
    temperature, top_p = body.temperature, body.top_p
    if top_p == 0:  # only the likeliest token is left
        temperature, top_p = 0.0, 1.0
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=defaults.temperature if temperature is None else temperature,
        top_p=defaults.top_p if top_p is None else top_p,
        top_k=defaults.top_k if body.top_k is None else max(body.top_k, 0),
        min_p=defaults.min_p if body.min_p is None else body.min_p,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repetition_penalty=defaults.repetition_penalty if repetition_penalty is None else repetition_penalty,
        logit_bias=tuple(body.logit_bias.items()),
        allowed_token_ids=None if body.allowed_token_ids is None else frozenset(body.allowed_token_ids),
        bad_words=muted.sequences,
        masked_tokens=muted.anywhere,
        masked_first_tokens=muted.first,
        seed=None if body.seed is None else choice_seed(body.seed, choice),
        stop=tuple(body.stop) or defaults.stop,
        stop_token_ids=frozenset(body.stop_token_ids),
        ignore_eos=body.ignore_eos,
        min_tokens=body.min_tokens,
        logprobs=body.num_logprobs,
        prompt_logprobs=body.num_prompt_logprobs,
        grammar=grammar,
        written_tokens=written_tokens,
    )


def choice_seed(seed: int, choice: int) -> int:
    """Return the seed of one choice of a prompt: the given one for the first, a mixture with the index for the others.

    So no choice draws the random numbers of a choice of another seed, such as the next one.
    """
    if choice == 0:
        return seed
    digest = blake2b(f"{seed} {choice}".encode(), digest_size=SEED_BYTES).digest()
    return int.from_bytes(digest, "little", signed=True)
