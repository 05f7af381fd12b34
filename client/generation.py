"""Generated tokens and replies.

Complete replies and chunks of streams are parsed by the same code: a complete reply is a stream of one chunk.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from client.parsing import dataclass_from


@dataclass(frozen=True)
class TokenLogprob:
    """Log-probability of a token. ``logprob`` is None for the first token of an echoed prompt."""

    token: str
    logprob: float | None
    top: tuple[tuple[str, float], ...] = ()  # most likely tokens and their logprobs


@dataclass(frozen=True)
class ToolCallPiece:
    """A part of a streamed tool call. The first has ``id`` and ``name``; all ``arguments`` joined are the JSON."""

    index: int
    id: str | None
    name: str | None
    arguments: str


@dataclass(frozen=True)
class ToolCall:
    """A tool call of the model; ``arguments`` is a JSON object as text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Token:
    """A chunk of a stream: usually one token, sometimes none or several, because text can be held back."""

    text: str
    index: int = 0  # index of the choice
    reasoning: str = ""
    finish_reason: str | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    experts: tuple[tuple[tuple[int, ...], ...], ...] = ()  # chosen experts, by token and MoE layer
    tool_calls: tuple[ToolCallPiece, ...] = ()
    adapters: tuple[Mapping[str, float], ...] = ()  # weights of adapters, by token


@dataclass(frozen=True)
class Choice:
    """One choice of a reply; ``finish_reason`` is None until the choice is finished."""

    text: str
    index: int = 0
    reasoning: str = ""
    finish_reason: str | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    experts: tuple[tuple[tuple[int, ...], ...], ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    adapters: tuple[Mapping[str, float], ...] = ()


@dataclass(frozen=True)
class ExpertUsage:
    """Expert cost of a request."""

    expert_requests: int
    expert_misses: int  # requested experts that were not in memory
    expert_bytes_read: int
    expert_stall_seconds: float
    expert_remote_bytes: int = 0  # of those read, the bytes that were on no disk of the server
    prefill_passes: int = 0  # passes that computed parts of the prompt layer by layer


@dataclass(frozen=True)
class Usage:
    """Token counts of a request, and its expert cost if the server reports it."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    greenroom: ExpertUsage | None = None
    cached_tokens: int = 0  # prompt tokens found in the server's prefix cache


@dataclass(frozen=True)
class Routing:
    """The choice of the server's router for a request whose model is "auto"."""

    method: str
    model: str  # the chosen adapter, variant or base model; "auto" if adapters were chosen for each token
    reason: str
    scores: Mapping[str, float] = field(default_factory=dict)  # by model; those that were not chosen included
    weights: Mapping[str, float] = field(default_factory=dict)  # means over tokens and layers, by adapter


@dataclass(frozen=True)
class Reply:
    """A reply, or its part so far in a stream. The properties refer to the first choice."""

    id: str = ""
    model: str = ""
    created: int = 0  # seconds since 1970
    choices: tuple[Choice, ...] = (Choice(""),)
    usage: Usage | None = None
    routing: Routing | None = None  # None if the request named its model

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def finish_reason(self) -> str | None:
        return self.choices[0].finish_reason


@dataclass(frozen=True)
class Completion(Reply):
    """A reply to a completion request."""


@dataclass(frozen=True)
class ChatReply(Reply):
    """A reply to a chat request."""

    @property
    def reasoning(self) -> str:
        return self.choices[0].reasoning

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        return self.choices[0].tool_calls

    @property
    def message(self) -> dict[str, Any]:
        """The reply as a message, to append to the conversation."""
        calls = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in self.tool_calls
        ]
        reasoning = {"reasoning_content": self.reasoning} if self.reasoning else {}
        return {"role": "assistant", "content": self.text, **reasoning, **({"tool_calls": calls} if calls else {})}


def parse_tokens(body: Mapping[str, Any]) -> list[Token]:
    """Parse the choices of a reply or a chunk."""
    return [_token(choice) for choice in body["choices"]]


def parse_usage(body: Mapping[str, Any]) -> Usage | None:
    """Parse the usage of a reply or a chunk, if it has one."""
    usage = body.get("usage")
    if usage is None:
        return None
    experts, details = usage.get("greenroom"), usage.get("prompt_tokens_details")
    return dataclass_from(
        Usage,
        usage,
        cached_tokens=(details or {}).get("cached_tokens") or 0,
        greenroom=None if experts is None else dataclass_from(ExpertUsage, experts),
    )


def parse_routing(body: Mapping[str, Any]) -> Routing | None:
    """Parse the choice of a router from a reply, or from a chunk of a stream, if it has one."""
    routing = (body.get("greenroom") or {}).get("routing")
    if routing is None:
        return None
    scores, weights = ({**(routing.get(name) or {})} for name in ("scores", "weights"))
    return dataclass_from(Routing, routing, scores=scores, weights=weights)


def join_tokens(tokens: Iterable[Token]) -> tuple[Choice, ...]:
    """Join tokens into choices; there is always at least one choice."""
    by_choice: dict[int, list[Token]] = {0: []}
    for token in tokens:
        by_choice.setdefault(token.index, []).append(token)
    return tuple(_choice(index, by_choice[index]) for index in sorted(by_choice))


def _choice(index: int, tokens: Sequence[Token]) -> Choice:
    return Choice(
        "".join(token.text for token in tokens),
        index,
        "".join(token.reasoning for token in tokens),
        finish_reason=next(
            (token.finish_reason for token in reversed(tokens) if token.finish_reason is not None), None
        ),
        logprobs=tuple(each for token in tokens for each in token.logprobs),
        experts=tuple(each for token in tokens for each in token.experts),
        tool_calls=_tool_calls(piece for token in tokens for piece in token.tool_calls),
        adapters=tuple(each for token in tokens for each in token.adapters),
    )


def _tool_calls(pieces: Iterable[ToolCallPiece]) -> tuple[ToolCall, ...]:
    by_call: dict[int, list[ToolCallPiece]] = {}
    for piece in pieces:
        by_call.setdefault(piece.index, []).append(piece)
    return tuple(
        ToolCall(
            "".join(piece.id or "" for piece in call),
            "".join(piece.name or "" for piece in call),
            "".join(piece.arguments for piece in call),
        )
        for call in by_call.values()
    )


def _token(choice: Mapping[str, Any]) -> Token:
    message = choice.get("message") or choice.get("delta") or {}
    return Token(
        choice.get("text") or message.get("content") or "",
        choice["index"],
        message.get("reasoning_content") or "",
        finish_reason=choice.get("finish_reason"),
        logprobs=_logprobs(choice.get("logprobs")),
        experts=tuple(tuple(tuple(chosen) for chosen in token) for token in choice.get("experts") or ()),
        tool_calls=tuple(_piece(position, call) for position, call in enumerate(message.get("tool_calls") or ())),
        adapters=tuple({**weights} for weights in choice.get("adapters") or ()),
    )


def _piece(position: int, call: Mapping[str, Any]) -> ToolCallPiece:
    """Parse a tool call; calls of a complete reply have no index, so their position is used."""
    function = call.get("function") or {}
    return ToolCallPiece(
        call.get("index", position), call.get("id"), function.get("name"), function.get("arguments") or ""
    )


def _logprobs(logprobs: Mapping[str, Any] | None) -> tuple[TokenLogprob, ...]:
    """Parse logprobs: a list of objects for chats, parallel lists for completions."""
    if logprobs is None:
        return ()
    if "tokens" in logprobs:
        names = ("tokens", "token_logprobs", "top_logprobs")
        return tuple(
            TokenLogprob(token, logprob, tuple((top or {}).items()))
            for token, logprob, top in zip(*(logprobs[name] for name in names), strict=True)
        )
    return tuple(
        TokenLogprob(
            each["token"], each["logprob"], tuple((top["token"], top["logprob"]) for top in each["top_logprobs"])
        )
        for each in logprobs["content"]
    )
