"""What a server can be asked: each function describes a request and how its answer is read, and sends nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Generic, TypeVar, Unpack

import httpx

from client.experts import Expert, ExpertChange, ExpertMap, change_of, expert_map_of, expert_of
from client.frames import ExpertFrame
from client.generation import ChatReply, Completion, Reply, Token, choices_of, tokens_of, usage_of
from client.metrics import Metrics, metrics_of
from client.operations import Health, Model, models_of
from client.options import ChatOptions, CompletionOptions, Message
from client.parsing import expecting
from client.readers import EventReader, FrameReader, TokenReader

T = TypeVar("T")
S = TypeVar("S")
R = TypeVar("R", bound=Reply)

Prompt = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
ExpertKeys = Iterable[tuple[int, int]]  # layer and expert

WELL_OR_NOT = frozenset({HTTPStatus.SERVICE_UNAVAILABLE})


@dataclass(frozen=True)
class Ask:
    """A request; ``answers`` are the statuses beside success that are no errors."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    query: Mapping[str, Any] = field(default_factory=dict)
    is_admin: bool = False
    answers: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request with one answer."""

    ask: Ask
    what: str  # the answer is
    parse: Callable[[httpx.Response], T]

    def read(self, response: httpx.Response) -> T:
        """The result.

        Raises:
            InvalidReplyError: the answer has another shape.
        """
        with expecting(self.what):
            return self.parse(response)


@dataclass(frozen=True)
class StreamCall(Generic[T, S]):
    """A request whose answer is a stream; each reading needs a reader of its own."""

    ask: Ask
    reader: Callable[[], EventReader[T, S]]


def complete(prompt: Prompt, **options: Unpack[CompletionOptions]) -> Call[Completion]:
    """Continue a text."""
    return Call(_completion({"prompt": prompt, **options}), "completion", lambda response: _reply(Completion, response))


def stream(prompt: Prompt, **options: Unpack[CompletionOptions]) -> StreamCall[Token, Completion]:
    """Continue a text, token by token as they are written; ``result`` of the stream is what has come so far."""
    return StreamCall(_completion({"prompt": prompt, **options, **STREAMED}), lambda: TokenReader(Completion))


def chat(messages: str | Sequence[Message], **options: Unpack[ChatOptions]) -> Call[ChatReply]:
    """The assistant's turn after some messages, or after the one that a text is."""
    return Call(_chat(messages, options), "chat completion", lambda response: _reply(ChatReply, response))


def stream_chat(messages: str | Sequence[Message], **options: Unpack[ChatOptions]) -> StreamCall[Token, ChatReply]:
    """The assistant's turn, token by token as they are written; ``result`` of the stream is what has come so far."""
    return StreamCall(_chat(messages, {**options, **STREAMED}), lambda: TokenReader(ChatReply))


def models() -> Call[list[Model]]:
    """The models that are served."""
    return Call(Ask("GET", "/v1/models"), "list of models", lambda response: models_of(response.json()))


def experts() -> Call[ExpertMap]:
    """Where all experts are."""
    ask = Ask("GET", "/v1/experts", is_admin=True)
    return Call(ask, "map of experts", lambda response: expert_map_of(response.json()))


def expert(layer: int, expert: int) -> Call[Expert]:
    """One expert."""
    ask = Ask("GET", f"/v1/experts/{layer:d}/{expert:d}", is_admin=True)
    return Call(ask, "expert", lambda response: expert_of(response.json()))


def watch_experts(interval: float = 0.5) -> StreamCall[ExpertFrame, ExpertFrame | None]:
    """Where all experts are and what goes through them, every ``interval`` seconds (0.1 to 60)."""
    ask = Ask("GET", "/v1/experts/stream", query={"interval": interval}, is_admin=True)
    return StreamCall(ask, FrameReader)


def pin(experts: ExpertKeys) -> Call[ExpertChange]:
    """Read experts, given as layer and expert, and keep them in memory."""
    return _change("pin", experts)


def unpin(experts: ExpertKeys) -> Call[ExpertChange]:
    """Let pinned experts go again when their slots are needed."""
    return _change("unpin", experts)


def prefetch(experts: ExpertKeys) -> Call[ExpertChange]:
    """Begin to read experts into memory."""
    return _change("prefetch", experts)


def evict(experts: ExpertKeys) -> Call[ExpertChange]:
    """Drop experts from memory, unless they are pinned or in use."""
    return _change("evict", experts)


def metrics() -> Call[Metrics]:
    """All counters and gauges of the server."""
    return Call(Ask("GET", "/metrics"), "metrics", lambda response: metrics_of(response.text))


def health() -> Call[Health]:
    """Whether the server lives; what is not ok needs a restart."""
    return _state("/health")


def ready() -> Call[Health]:
    """Whether the server takes requests now."""
    return _state("/ready")


STREAMED: Mapping[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


def _completion(body: Mapping[str, Any]) -> Ask:
    return Ask("POST", "/v1/completions", body)


def _chat(messages: str | Sequence[Message], options: Mapping[str, Any]) -> Ask:
    conversation = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
    return Ask("POST", "/v1/chat/completions", {"messages": conversation, **options})


def _reply(kind: type[R], response: httpx.Response) -> R:
    body = response.json()
    return kind(body["id"], body["model"], body["created"], choices_of(tokens_of(body)), usage_of(body))


def _change(verb: str, experts: ExpertKeys) -> Call[ExpertChange]:
    body = {"experts": [[layer, expert] for layer, expert in experts]}
    ask = Ask("POST", f"/v1/experts/{verb}", body, is_admin=True)
    return Call(ask, "change of experts", lambda response: change_of(response.json()))


def _state(path: str) -> Call[Health]:
    ask = Ask("GET", path, answers=WELL_OR_NOT)
    return Call(ask, "health", lambda response: Health(response.json()["status"], response.is_success))
