"""What a server writes: tokens as they come, and whole replies.

A choice of a whole reply, a chunk of it and a chunk of a chat are read by the same code: a whole reply is one that came
in one piece.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from client.parsing import record


@dataclass(frozen=True)
class TokenLogprob:
    """How likely a token was; ``logprob`` is None for the first token of an echoed prompt, which nothing predicts."""

    token: str
    logprob: float | None
    top: tuple[tuple[str, float], ...] = ()  # the likeliest tokens and their logprobs


@dataclass(frozen=True)
class ToolCallPiece:
    """A part of a call of a tool: id and name come with the first, ``arguments`` is JSON when put together."""

    index: int
    id: str | None
    name: str | None
    arguments: str


@dataclass(frozen=True)
class ToolCall:
    """A tool that the model wants called; ``arguments`` is a JSON object as text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Token:
    """What came at once: mostly one token, at times none or several whose text was held back."""

    text: str
    index: int = 0  # of the choice
    reasoning: str = ""
    finish_reason: str | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    experts: tuple[tuple[tuple[int, ...], ...], ...] = ()  # of each token, by MoE layer, the experts chosen
    tool_calls: tuple[ToolCallPiece, ...] = ()


@dataclass(frozen=True)
class Choice:
    """One of the texts of a reply; ``finish_reason`` is None as long as it is not finished."""

    text: str
    index: int = 0
    reasoning: str = ""
    finish_reason: str | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    experts: tuple[tuple[tuple[int, ...], ...], ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class ExpertUsage:
    """What the experts of a request cost."""

    expert_requests: int
    expert_misses: int  # of these, the ones that were not in memory
    expert_bytes_read: int
    expert_stall_seconds: float


@dataclass(frozen=True)
class Usage:
    """Tokens of a request, and what its experts cost where the server says so."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    greenroom: ExpertUsage | None = None
    cached_tokens: int = 0  # of the prompts, that were in the server's KV cache already


@dataclass(frozen=True)
class Reply:
    """Everything that was written for a request, or has come so far; its first choice has shortcuts."""

    id: str = ""
    model: str = ""
    created: int = 0  # seconds since 1970
    choices: tuple[Choice, ...] = (Choice(""),)
    usage: Usage | None = None

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def finish_reason(self) -> str | None:
        return self.choices[0].finish_reason


@dataclass(frozen=True)
class Completion(Reply):
    """A text that was continued."""


@dataclass(frozen=True)
class ChatReply(Reply):
    """The assistant's turn."""

    @property
    def reasoning(self) -> str:
        return self.choices[0].reasoning

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        return self.choices[0].tool_calls

    @property
    def message(self) -> dict[str, Any]:
        """The turn as a message, to be put behind the others."""
        calls = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in self.tool_calls
        ]
        reasoning = {"reasoning_content": self.reasoning} if self.reasoning else {}
        return {"role": "assistant", "content": self.text, **reasoning, **({"tool_calls": calls} if calls else {})}


def tokens_of(body: Mapping[str, Any]) -> list[Token]:
    """The choices of a reply or of one of its chunks."""
    return [_token(choice) for choice in body["choices"]]


def usage_of(body: Mapping[str, Any]) -> Usage | None:
    """The usage of a reply or chunk, if it has one."""
    usage = body.get("usage")
    if usage is None:
        return None
    experts, details = usage.get("greenroom"), usage.get("prompt_tokens_details")
    return record(
        Usage,
        usage,
        cached_tokens=(details or {}).get("cached_tokens") or 0,
        greenroom=None if experts is None else record(ExpertUsage, experts),
    )


def choices_of(tokens: Iterable[Token]) -> tuple[Choice, ...]:
    """Tokens put together, choice by choice; there is always a first one."""
    by_choice: dict[int, list[Token]] = {0: []}
    for token in tokens:
        by_choice.setdefault(token.index, []).append(token)
    return tuple(_choice(index, by_choice[index]) for index in sorted(by_choice))


def _choice(index: int, tokens: Sequence[Token]) -> Choice:
    return Choice(
        "".join(token.text for token in tokens),
        index,
        "".join(token.reasoning for token in tokens),
        next((token.finish_reason for token in reversed(tokens) if token.finish_reason is not None), None),
        tuple(each for token in tokens for each in token.logprobs),
        tuple(each for token in tokens for each in token.experts),
        _tool_calls(piece for token in tokens for piece in token.tool_calls),
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
        choice.get("finish_reason"),
        _logprobs(choice.get("logprobs")),
        tuple(tuple(tuple(chosen) for chosen in token) for token in choice.get("experts") or ()),
        tuple(_piece(place, call) for place, call in enumerate(message.get("tool_calls") or ())),
    )


def _piece(place: int, call: Mapping[str, Any]) -> ToolCallPiece:
    """Calls of a whole reply have no index but their place."""
    function = call.get("function") or {}
    return ToolCallPiece(
        call.get("index", place), call.get("id"), function.get("name"), function.get("arguments") or ""
    )


def _logprobs(logprobs: Mapping[str, Any] | None) -> tuple[TokenLogprob, ...]:
    """Those of a chat are a list of objects, those of completions are lists side by side."""
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
