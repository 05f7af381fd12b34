"""From the prompts of a request to the streams that answer it."""

import json
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from uuid import uuid4

from server.api.errors import ContextLengthError, InvalidRequestError
from server.api.openai.schemas import GenerationBody
from server.api.room import Part
from server.api.service import LoadedModel
from server.engine.request import (
    Chosen,
    EngineError,
    ExpertUsage,
    FinishReason,
    GenerationRequest,
    Grammar,
    Media,
    SamplingDefaults,
    SamplingParams,
    TokenEvent,
    TokenStream,
    merge,
)

MAX_CHOICES = 128
MAX_PROMPT_LOGPROBS = 1 << 20  # of a request; the engine gathers them before any is sent


@dataclass
class Generation:
    """An accepted request: ``n`` streams for each prompt, prompt after prompt, one for each choice."""

    id: str
    model: str
    num_prompt_tokens: int
    streams: Sequence[TokenStream]
    num_choices: int = 1  # of each prompt
    created: int = field(default_factory=lambda: int(time.time()))
    returns_experts: bool = False
    part: Part | None = None  # of the room for logprobs of prompts
    expert_usage: ExpertUsage = field(default_factory=ExpertUsage)  # of the choices that have ended
    num_generated: list[int] = field(init=False)  # tokens, by choice
    finish_reasons: list[FinishReason | None] = field(init=False)  # by choice
    error: EngineError | None = None  # that ended it

    def __post_init__(self) -> None:
        self._experts: list[list[str]] = [[] for _ in self.streams]  # of tokens that were not told of yet, in JSON
        self._queue = merge(self.streams)
        self.num_generated = [0] * len(self.streams)
        self.finish_reasons = [None] * len(self.streams)

    @property
    def num_cached_tokens(self) -> int:
        """Of the prompts, each counted once; those that were in the KV cache before its first choice began."""
        return sum(stream.timeline.num_cached_tokens for stream in self.streams[:: self.num_choices])

    def cancel(self) -> None:
        """End what still runs; to be called in the end, whatever became of it."""
        for stream in self.streams:
            stream.cancel()
        if self.part is not None:
            self.part.give_back()

    def note_experts(self, index: int, event: TokenEvent) -> None:
        """Keep the experts of a choice's new token, if they are asked for, until they are taken."""
        if event.experts is not None:
            self._experts[index].append(experts_json(event.experts))

    def take_experts(self, index: int) -> str:
        """The experts of a choice's tokens that were noted since they were last taken, as a list in JSON."""
        tokens, self._experts[index] = self._experts[index], []
        return f"[{','.join(tokens)}]"

    async def events(self) -> AsyncGenerator[list[tuple[int, TokenEvent]], None]:
        """The events of all choices, as many at a time as have come, each with the index of its choice.

        Raises:
            EngineError: one of the choices failed.

        """
        num_running = len(self.streams)
        while num_running:
            try:
                arrived = await self._queue.take()
            except EngineError as error:
                self.error = error
                raise
            for index, event in arrived:
                num_running -= event.finish_reason is not None
                self.num_generated[index] = event.num_generated
                self.finish_reasons[index] = event.finish_reason
                self.expert_usage += event.expert_usage or ExpertUsage()
            yield arrived


def submit(
    model: LoadedModel,
    body: GenerationBody,
    prompts: Sequence[Sequence[int]],
    id_prefix: str,
    prompt_field: str,
    media: Media | None = None,
    grammar: Grammar | None = None,
    written_tokens: frozenset[int] = frozenset(),
) -> Generation:
    """Hand every choice to the engine, or none; call from the event loop.

    Args:
        media: the images of the only prompt.
        grammar: what every choice has to follow.
        written_tokens: special tokens that are text.

    Raises:
        InvalidRequestError: there are too many choices, or a prompt does not fit the model.
        EngineError: the engine takes no such request, or none now.

    """
    if len(prompts) * body.n > MAX_CHOICES:
        raise InvalidRequestError(
            f"{len(prompts)} prompts with n={body.n} are more than {MAX_CHOICES} choices: split the request.",
            prompt_field,
        )
    num_logprobs = 0 if body.num_prompt_logprobs is None else 1 + body.num_prompt_logprobs
    num_logprobs *= sum(map(len, prompts)) * body.n
    if num_logprobs > MAX_PROMPT_LOGPROBS:
        raise InvalidRequestError(
            f"{num_logprobs} logprobs of prompts are more than {MAX_PROMPT_LOGPROBS}: split the request.", "logprobs"
        )
    limits = [max_tokens_for(len(prompt), model.engine.max_model_len, body, prompt_field) for prompt in prompts]
    generation_id = f"{id_prefix}{uuid4().hex}"
    streams: list[TokenStream] = []
    part = model.logprobs_room.part()
    try:
        part.take(num_logprobs)
        for prompt, max_tokens in zip(map(tuple, prompts), limits, strict=True):
            for choice in range(body.n):
                request_id = f"{generation_id}-{len(streams)}"
                sampling = sampling_params(body, model.defaults, max_tokens, choice, grammar, written_tokens)
                request = GenerationRequest(
                    request_id,
                    prompt,
                    sampling,
                    body.priority,
                    body.timeout,
                    media,
                    body.return_experts,
                    model.keeps_stalls,
                )
                streams.append(model.engine.submit(request))
    except Exception:
        for stream in streams:
            stream.cancel()
        part.give_back()
        raise
    num_prompt_tokens = sum(map(len, prompts))
    return Generation(
        generation_id, model.name, num_prompt_tokens, streams, body.n, returns_experts=body.return_experts, part=part
    )


def experts_json(chosen: Chosen) -> str:
    """The experts of one token, a list of them by MoE layer.

    It is made as each token comes: all those of a long reply at once would hold up the event loop.
    """
    return json.dumps([[expert for expert in layer if expert >= 0] for layer in chosen.tolist()], separators=(",", ":"))


def max_tokens_for(num_prompt_tokens: int, max_model_len: int, body: GenerationBody, prompt_field: str) -> int:
    """How many tokens a prompt may be continued by; a default is cut to what fits, a wish is not.

    Raises:
        ContextLengthError: the prompt leaves no room, or less than was asked for.

    """
    room = max_model_len - num_prompt_tokens
    wish = body.wanted_tokens
    if wish is None and room >= 1:
        return min(room, body.default_max_tokens or room)
    if wish is not None and (wish <= room or (body.may_cut_max_tokens and room >= 1)):
        return min(wish, room)
    num_wanted = 1 if wish is None else wish
    raise ContextLengthError(
        f"This model's maximum context length is {max_model_len} tokens. However, you requested "
        f"{num_prompt_tokens + num_wanted} tokens ({num_prompt_tokens} in the prompt, {num_wanted} in the completion). "
        "Please reduce the length of the prompt or of the completion.",
        prompt_field,
    )


def sampling_params(
    body: GenerationBody,
    defaults: SamplingDefaults,
    max_tokens: int,
    choice: int,
    grammar: Grammar | None = None,
    written_tokens: frozenset[int] = frozenset(),
) -> SamplingParams:
    """How to sample one of the choices of a prompt.

    Raises:
        InvalidRequestError: the least number of tokens is above the greatest.

    """
    if body.min_tokens > max_tokens:
        raise InvalidRequestError(
            f"'min_tokens' is {body.min_tokens}, but no more than {max_tokens} tokens may be generated.", "min_tokens"
        )
    repetition_penalty = body.repetition_penalty
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=defaults.temperature if body.temperature is None else body.temperature,
        top_p=defaults.top_p if body.top_p is None else body.top_p,
        top_k=defaults.top_k if body.top_k is None else max(body.top_k, 0),
        min_p=defaults.min_p if body.min_p is None else body.min_p,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repetition_penalty=defaults.repetition_penalty if repetition_penalty is None else repetition_penalty,
        logit_bias=tuple(body.logit_bias.items()),
        # The choices of one prompt must differ; xor keeps the seed within 64 bits.
        seed=None if body.seed is None else body.seed ^ choice,
        stop=tuple(body.stop),
        stop_token_ids=frozenset(body.stop_token_ids),
        ignore_eos=body.ignore_eos,
        min_tokens=body.min_tokens,
        logprobs=body.num_logprobs,
        prompt_logprobs=body.num_prompt_logprobs,
        grammar=grammar,
        written_tokens=written_tokens,
    )
