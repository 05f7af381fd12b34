"""What the engine takes and gives: requests, sampling parameters, streams of token events, and its errors.

The HTTP surface knows the engine by this module alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt


class EngineError(Exception):
    """Any failure of the engine; the message may be shown to the client."""


class RequestRefusedError(EngineError):
    """The request can never run; ``param`` names the field to change."""

    def __init__(self, message: str, param: str | None = None):
        super().__init__(message)
        self.param = param


class PromptTooLongError(RequestRefusedError):
    """The prompt is longer than the model's context, as is plain before it is tokens."""


class QueueFullError(EngineError):
    """As many requests wait as may wait; try again later."""


class EngineUnavailableError(EngineError):
    """The engine is stopping or has died."""


class DeadlineExceededError(EngineError):
    """The request took longer than it may; what it wrote so far was sent."""


class GenerationFailedError(EngineError):
    """An accepted request failed; its stream ends with this."""


class FinishReason(StrEnum):
    """Why a sequence ended, in OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True)
class GrammarSpec:
    """What a completion has to be: any JSON object, JSON of a schema, or a text of a grammar.

    ``text`` is the schema as JSON, or the grammar in llguidance's dialect of Lark, where ``%json {...}`` stands for
    JSON of a schema between other text. ``x-guidance`` in a schema bounds the white space.
    """

    kind: Literal["json_object", "json_schema", "lark"]
    text: str = ""
    param: str = "response_format"  # of the request, for errors


class Grammar(Protocol):
    """A compiled ``GrammarSpec``, which any number of sequences may follow at once."""

    def matcher(self) -> Any:
        """What follows one sequence; the engine's affair."""


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens, and when to stop."""

    max_tokens: int
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 is all
    min_p: float = 0.0
    presence_penalty: float = 0.0  # over generated tokens, as is the next
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0  # over prompt and generated tokens
    logit_bias: tuple[tuple[int, float], ...] = ()  # token id and what is added to its logit, each token once
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    min_tokens: int = 0  # generated before anything but max_tokens may end the sequence
    logprobs: int | None = None  # of each generated token, and so many of the likeliest beside it
    prompt_logprobs: int | None = None  # the same of each prompt token
    written_tokens: frozenset[int] = frozenset()  # special tokens that are text, as others are not
    grammar: Grammar | None = None  # leaves possible what it allows next, and ends the sequence when it is complete

    @property
    def has_penalties(self) -> bool:
        return self.presence_penalty != 0 or self.frequency_penalty != 0 or self.repetition_penalty != 1

    @property
    def has_filters(self) -> bool:
        """Whether some tokens are impossible because others are likelier."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


@dataclass(frozen=True)
class SamplingDefaults:
    """What a model wants where a request does not say."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True)
class Media:
    """The images of a prompt."""

    inputs: Any  # what the model takes of them; opaque to the engine
    content_ids: tuple[int, ...]  # the prompt, with numbers that tell what is shown for the tokens that stand for it
    wholes: tuple[tuple[int, int], ...] = ()  # first and last (exclusive) of tokens that go into one step together


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation as the model takes it."""

    token_ids: Sequence[int]
    media: Media | None = None


Pooling = Literal["mean", "last"]  # of the last hidden states of a prompt's tokens


@dataclass(frozen=True)
class ChatTraits:
    """What tells in which form a model writes its turns."""

    template: str = ""  # the source of its chat template
    markers: frozenset[str] = frozenset()  # texts that are tokens of their own
    special: Mapping[str, int] = field(default_factory=dict)  # those that are special tokens, and their ids


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt to be continued once."""

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    priority: int = 0  # lower goes first, as in vLLM
    deadline_seconds: float | None = None  # from submission; then it ends with an error
    media: Media | None = None
    returns_experts: bool = False  # whether events tell them
    pooling: Pooling | None = None  # instead of being continued, the prompt is made a vector of


@dataclass(frozen=True)
class TokenLogprobs:
    """How likely a token was in the model's own distribution, before penalties and temperature."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # the likeliest tokens and their logprobs, likeliest first
    text_offset: int = 0  # characters of the completion before the token; 0 for a token of the prompt


@dataclass(frozen=True)
class ExpertUsage:
    """What the experts that a request's own tokens went to have cost, over all steps."""

    num_requests: int = 0  # experts asked for, each once a layer and step
    num_misses: int = 0  # of these, the ones that were in no tier of memory
    bytes_read: int = 0  # from disk, of those
    stall_seconds: float = 0.0  # that it waited in layers, also for others' experts

    def __add__(self, other: ExpertUsage) -> ExpertUsage:
        return ExpertUsage(
            self.num_requests + other.num_requests,
            self.num_misses + other.num_misses,
            self.bytes_read + other.bytes_read,
            self.stall_seconds + other.stall_seconds,
        )


RequestState = Literal["waiting", "prefill", "decode", "held"]  # held: it decodes, and waits for its turn on stage


@dataclass(frozen=True)
class RequestStatus:
    """How far a request is that has not ended; ``waiting`` with tokens generated is one that was preempted."""

    request_id: str
    state: RequestState
    priority: int
    num_prompt_tokens: int
    num_cached_tokens: int  # of prompt and completion, that the KV cache holds
    num_generated: int
    max_tokens: int
    age_seconds: float  # since it was submitted
    queue_seconds: float  # until its first step, or now
    expert_usage: ExpertUsage  # so far


Chosen = npt.NDArray[np.int16]  # (MoE layers in the order in which they run, k): the experts of a token, -1 for none


@dataclass(frozen=True)
class TokenEvent:
    """One step of a stream: new text (perhaps empty, while a character or stop string is incomplete)."""

    text: str
    num_generated: int  # tokens generated so far, the one that stopped it included
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()  # of the new tokens, also of those whose text is held back
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None  # with the first event: of all prompt tokens but the first
    stop: str | None = None  # the stop string that has ended the text
    experts: Chosen | None = None  # that the token went to which the new one follows, if they are asked for
    expert_usage: ExpertUsage | None = None  # with the last event
    embedding: npt.NDArray[np.float32] | None = None  # (hidden,), with the only event of a prompt that was pooled


MAX_UNREAD = 1024  # events of a stream that nobody has taken


class EventQueue:
    """What happened in some streams, in the order of its coming, for one reader; all of it in the loop's thread.

    It is bounded: a reader that falls too far behind gets an error instead of what it has missed.
    """

    def __init__(self, num_streams: int = 1):
        self._events: list[tuple[int, TokenEvent]] = []
        self._max_events = MAX_UNREAD * num_streams
        self._error: EngineError | None = None
        self._has_come = asyncio.Event()

    def put(self, index: int, item: TokenEvent | EngineError) -> bool:
        """Add what happened in one of the streams; False if nobody will read it any more."""
        if self._error is not None:
            return False
        self._has_come.set()
        if isinstance(item, EngineError):
            self._error = item
            return True
        if len(self._events) == self._max_events:
            self._events.clear()
            self._error = GenerationFailedError(
                f"the request was cancelled: {self._max_events} tokens of the reply were waiting to be read"
            )
            return False
        self._events.append((index, item))
        return True

    async def take(self) -> list[tuple[int, TokenEvent]]:
        """All events that have come, at least one, each with the number of its stream.

        Raises:
            EngineError: one of the streams has failed; its earlier events were taken before.
        """
        await self._has_come.wait()
        events, self._events = self._events, []
        if self._error is None:
            self._has_come.clear()
        elif not events:
            raise self._error
        return events


@dataclass(eq=False)
class TokenStream:
    """The events of one request, for the event loop that submitted it.

    ``fail`` and what ``publish`` hands out come from the engine thread; all else is for the loop. Iteration ends after
    the event that carries a finish reason, or raises the error that ended the request. ``cancel`` may be called at any
    time, also when the stream is over.
    """

    request: GenerationRequest
    loop: asyncio.AbstractEventLoop
    is_cancelled: bool = False
    queue_seconds: float | None = None  # until its first step
    first_token_seconds: float | None = None  # both from submission, set by the engine thread
    _queue: EventQueue = field(default_factory=EventQueue)
    _index: int = 0  # in a queue of several

    def fail(self, error: EngineError) -> None:
        publish([(self, error)])

    def cancel(self) -> None:
        self.is_cancelled = True

    async def __aiter__(self) -> AsyncIterator[TokenEvent]:
        while True:
            for _, event in await self._queue.take():
                yield event
                if event.finish_reason is not None:
                    return

    def receive(self, item: TokenEvent | EngineError) -> None:
        """Take what was published; in the loop's thread."""
        if not self._queue.put(self._index, item):
            self.cancel()

    def join(self, queue: EventQueue, index: int) -> None:
        """From now on put everything into a queue of several streams, where this one has a number."""
        self._queue, self._index = queue, index


def merge(streams: Sequence[TokenStream]) -> EventQueue:
    """One queue for the events of streams that were just submitted; iterate over none of them any more."""
    queue = EventQueue(len(streams))
    for index, stream in enumerate(streams):
        stream.join(queue, index)
    return queue


def check_sampling(sampling: SamplingParams, vocab_size: int) -> None:
    """Refuse token ids that the model does not have.

    Raises:
        RequestRefusedError: with the parameter that holds one.
    """
    for param, token_ids in (
        ("logit_bias", [token for token, _ in sampling.logit_bias]),
        ("stop_token_ids", sampling.stop_token_ids),
    ):
        unknown = next((token for token in token_ids if not 0 <= token < vocab_size), None)
        if unknown is not None:
            raise RequestRefusedError(f"'{param}' holds token id {unknown}, which is not below {vocab_size}", param)


def publish(items: Sequence[tuple[TokenStream, TokenEvent | EngineError]]) -> None:
    """Hand out the events of a step, waking each event loop once; from any thread."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[TokenStream, TokenEvent | EngineError]]] = {}
    for stream, item in items:
        by_loop.setdefault(stream.loop, []).append((stream, item))
    for loop, mine in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_hand_out, mine)


def _hand_out(items: Sequence[tuple[TokenStream, TokenEvent | EngineError]]) -> None:
    for stream, item in items:
        stream.receive(item)


class GenerationEngine(Protocol):
    """The engine as the HTTP surface sees it."""

    @property
    def max_model_len(self) -> int:
        """Most tokens of one sequence, prompt and completion together."""

    @property
    def reads_whole(self) -> bool:
        """Whether the model answers prompts that its encoder reads, instead of continuing them."""

    @property
    def hidden_size(self) -> int:
        """Numbers of a hidden state; 0 if the model gives none, and so no prompt can be pooled."""

    @property
    def is_alive(self) -> bool:
        """False once the engine thread has died or was stopped."""

    def submit(self, request: GenerationRequest) -> TokenStream:
        """Queue a request; call from the event loop.

        Raises:
            RequestRefusedError: the prompt is empty, too long or holds an unknown token id.
            QueueFullError: too many requests wait.
            EngineUnavailableError: the engine is stopping or dead.
        """

    def requests(self) -> list[RequestStatus]:
        """What runs, then what waits, first to go first; from any thread, without waiting for a step."""

    def halt(self) -> None:
        """Take nothing more, and end every open stream with an error; waits for nothing."""


class TextCodec(Protocol):
    """Text to token ids; may block, so call it off the event loop."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Tokens of a plain prompt, by default with the special tokens the model expects at its start.

        Raises:
            PromptTooLongError: it can't fit the model.
        """

    def encode_chat(
        self,
        messages: Sequence[dict[str, Any]],
        images: Sequence[bytes] = (),
        tools: Sequence[dict[str, Any]] = (),
        options: Mapping[str, Any] = {},
        *,
        add_generation_prompt: bool = True,
    ) -> ChatPrompt:
        """A conversation, through the model's chat template, up to the assistant's turn.

        Args:
            messages: in OpenAI's form; arguments of calls are JSON objects.
            images: files, one for each ``{"type": "image"}`` in the messages' contents, in their order.
            tools: what the model may call, in OpenAI's form.
            options: further variables of the template.
            add_generation_prompt: whether the assistant's turn is begun.

        Raises:
            PromptTooLongError: it can't fit the model.
            RequestRefusedError: the model has no chat template, or the template refuses the messages, or has no tools;
                it takes no images, or one can't be read; an option has the name of something else.
        """

    @property
    def chat_traits(self) -> ChatTraits:
        """What the forms of the model's turns are told by; may block the first time."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for, also where they are only a part of a character; quick."""

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """The text that each token adds to those before it; special tokens are written out."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, special ones written out.

        Raises:
            RequestRefusedError: there is no such token.
        """

    def token_names(self, token_ids: Sequence[int]) -> list[str]:
        """Tokens as the vocabulary writes them, which is not always text.

        Raises:
            RequestRefusedError: there is no such token.
        """

    def compile_grammar(self, spec: GrammarSpec) -> Grammar:
        """What ``SamplingParams.grammar`` takes. It may take long; ``server.api.grammars`` bounds and shares it.

        Raises:
            RequestRefusedError: the grammar can't be compiled, or the bytes of the model's tokens can't be told.
        """


ExpertChange = Literal["pin", "unpin", "prefetch", "evict"]
ExpertPlace = tuple[int, int]  # layer and number of an expert
JsonObject = dict[str, Any]


class ExpertAdministration(Protocol):
    """The experts as the HTTP surface sees them, in JSON; every call may block, so make it off the event loop."""

    def overview(self) -> JsonObject:
        """Tiers, totals and every expert of every layer."""

    def find(self, layer: int, expert: int) -> JsonObject | None:
        """One expert; None if the model has no such."""

    def change(self, action: ExpertChange, places: Sequence[ExpertPlace]) -> int:
        """Pin experts and so on; how many were not so already.

        Raises:
            RequestRefusedError: the model has no such expert, it can't be read, or what is left is too little memory.
        """

    def sample(self) -> Any:
        """The state of all experts now, for the next two; opaque."""

    def snapshot(self, sample: Any) -> JsonObject:
        """All of a sample."""

    def update(self, before: Any, sample: Any) -> JsonObject:
        """What is different in a later sample."""
