"""A scripted engine, a codec with one token for each word, and an app that serves them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fastapi import FastAPI

from server.api.core.requests.loaded_model import LoadedModel
from server.api.core.service.service import Service
from server.api.routes import add_routes
from server.engine.interface import (
    ChatPrompt,
    ChatTraits,
    EngineError,
    ExpertUsage,
    FinishReason,
    GenerationRequest,
    Grammar,
    GrammarSpec,
    Media,
    RequestStatus,
    RoutedExperts,
    Timeline,
    TokenEvent,
    TokenLogprobs,
    TokenStream,
    publish,
)

MODEL = "org/tiny"
EXPERT_USAGE = ExpertUsage(10, 3, 4096, 0.25)  # of every choice
ENGINE_TEXTS = ("Once", " upon", "", " a", " time")
WAIT_SECONDS = 30  # how long a test waits for what must happen at once


@dataclass
class WatchedStream(TokenStream):
    """A stream with an event that any thread can wait for until it is cancelled."""

    cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        super().cancel()
        self.cancelled.set()


@dataclass
class FakeEngine:
    """Answers each request with ``texts``, cut to its max_tokens; ``failure`` and ``holds`` choose how it ends."""

    texts: tuple[str, ...] = ENGINE_TEXTS
    max_model_len: int = 64
    is_alive: bool = True
    hidden_size: int = 0
    is_encoder_decoder: bool = False
    is_encoder: bool = False
    labels: tuple[str, ...] = ()
    failure: EngineError | None = None  # fails each stream after its texts
    holds: bool = False  # streams neither end nor fail after their texts
    refusals: dict[int, EngineError] = field(default_factory=dict)  # by the number of the submit
    streams: list[WatchedStream] = field(default_factory=list)
    submitted: threading.Event = field(default_factory=threading.Event)
    num_resets: int = 0  # of the prefix cache

    @property
    def requests(self) -> list[GenerationRequest]:
        return [stream.request for stream in self.streams]

    def submit(self, request: GenerationRequest) -> TokenStream:
        if refusal := self.refusals.get(len(self.streams)):
            raise refusal
        stream = WatchedStream(request, asyncio.get_running_loop(), Timeline(0.0))
        self.streams.append(stream)
        for event in self._events(request):
            publish([(stream, event)])
        if self.failure is not None:
            publish([(stream, self.failure)])
        self.submitted.set()
        return stream

    def statuses(self) -> list[RequestStatus]:
        return []

    def reset_prefix_cache(self) -> None:
        self.num_resets += 1

    def halt(self) -> None:
        self.is_alive = False

    def _events(self, request: GenerationRequest) -> list[TokenEvent]:
        sampling = request.sampling
        texts = self.texts[: sampling.max_tokens]
        reason = FinishReason.LENGTH if len(texts) == sampling.max_tokens else FinishReason.STOP
        is_open = self.holds or self.failure is not None
        prompt_logprobs = self._prompt_logprobs(request)
        if not texts:
            last = TokenEvent("", 0, reason, prompt_logprobs=prompt_logprobs, expert_usage=EXPERT_USAGE)
            return [] if is_open else [last]
        return [
            TokenEvent(
                text,
                number,
                reason if number == len(texts) and not is_open else None,
                self._logprobs(number, len("".join(texts[: number - 1])), sampling.logprobs),
                prompt_logprobs if number == 1 else None,
                experts=self._experts(number) if request.returns_experts else None,
                expert_usage=EXPERT_USAGE if number == len(texts) and not is_open else None,
                token_id=99 + number,
                adapters={"law": 0.25, "code": 0.123456 * number, "none": 0.0} if request.returns_adapters else None,
            )
            for number, text in enumerate(texts, start=1)
        ]

    @staticmethod
    def _experts(number: int) -> RoutedExperts:
        return np.array([[number, number + 1], [7, -1]], dtype=np.int16)

    @staticmethod
    def _logprobs(number: int, offset: int, num_top: int | None) -> tuple[TokenLogprobs, ...]:
        """Token 100 comes first, then 101; each is less likely than the one before, and as likely as 200."""
        if num_top is None:
            return ()
        top = ((99 + number, -number / 2), (200, -number / 2))[:num_top]
        return (TokenLogprobs(99 + number, -number / 2, top, offset),)

    @staticmethod
    def _prompt_logprobs(request: GenerationRequest) -> tuple[TokenLogprobs, ...] | None:
        num_top = request.sampling.prompt_logprobs
        if num_top is None:
            return None
        return tuple(TokenLogprobs(token, -1.0, ((token, -1.0),)[:num_top]) for token in request.prompt_ids[1:])


@dataclass(eq=False)
class FakeGrammar:
    """A grammar that no engine follows."""

    spec: GrammarSpec

    def matcher(self) -> Any:
        raise NotImplementedError


@dataclass
class FakeCodec:
    """One token for each word, numbered by its length; a conversation has one more, for the assistant's turn."""

    conversations: list[list[dict[str, Any]]] = field(default_factory=list)
    tools: list[list[dict[str, Any]]] = field(default_factory=list)  # beside each conversation, as the next
    options: list[dict[str, Any]] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    refusal: EngineError | None = None
    chat_traits: ChatTraits = field(default_factory=ChatTraits)
    grammars: list[GrammarSpec] = field(default_factory=list)  # that were compiled
    grammar_may_end: threading.Event = field(default_factory=threading.Event)  # compiling waits for it
    grammar_refusal: EngineError | None = None

    def __post_init__(self) -> None:
        self.grammar_may_end.set()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        self.threads.append(threading.current_thread())
        return [len(word) for word in text.split()]

    @property
    def reads_images(self) -> bool:
        return False

    def encode_image(self, content: bytes) -> ChatPrompt:
        raise AssertionError(f"{len(content)} bytes of an image for a model of text")

    def encode_chat(
        self,
        messages: Sequence[dict[str, Any]],
        images: Sequence[bytes] = (),
        tools: Sequence[dict[str, Any]] = (),
        options: Mapping[str, Any] = {},
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> ChatPrompt:
        if self.refusal is not None:
            raise self.refusal
        self.conversations.append(list(messages))
        self.tools.append(list(tools))
        self.options.append(dict(options))
        if images:
            token_ids = (7,) * len(images)
            return ChatPrompt(token_ids, Media(tuple(images), token_ids))
        tokens = self.encode(" ".join(message["content"] for message in messages))
        return ChatPrompt(tokens if continue_final_message else [*tokens, 0])

    def token_bytes(self, token_id: int) -> bytes:
        """Return the engine's texts from 100 on, a part of a character for 200, and else ``token_id`` letters."""
        if token_id == 200:
            return b"\xe2\x82"
        return ENGINE_TEXTS[token_id - 100].encode() if token_id >= 100 else b"x" * token_id

    def compile_grammar(self, spec: GrammarSpec, hold: Callable[[int], bool] = lambda _: True) -> Grammar:
        self.hold = hold
        self.threads.append(threading.current_thread())
        self.grammars.append(spec)
        self.grammar_may_end.wait(WAIT_SECONDS)
        if self.grammar_refusal is not None:
            raise self.grammar_refusal
        return FakeGrammar(spec)

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        return [" " * (place > 0) + "x" * token_id for place, token_id in enumerate(token_ids)]

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(self.pieces(token_ids))

    def token_names(self, token_ids: Sequence[int]) -> list[str]:
        return ["x" * token_id for token_id in token_ids]


@dataclass
class FakeServer:
    """The app, its service, engine and codec."""

    engine: FakeEngine = field(default_factory=FakeEngine)
    codec: FakeCodec = field(default_factory=FakeCodec)
    service: Service = field(default_factory=lambda: Service(version="1.2.3"))
    app: FastAPI = field(default_factory=FastAPI)

    def __post_init__(self) -> None:
        self.service.model = LoadedModel(MODEL, self.engine, self.codec, created=1700000000)
        add_routes(self.app, self.service)
