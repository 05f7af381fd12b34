"""Parses a turn as its text comes, by running the reader of a format."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

from server.api.core.replies.deltas import Delta, EndDelta, ReasoningDelta, TextDelta, ToolCallDelta
from server.api.tool_parsers.call_syntax import Calls
from server.api.tool_parsers.text_buffer import Steps, TextBuffer


class TurnReader(Protocol):
    """Reads a turn in the format of a family of models."""

    def read(self, buffer: TextBuffer, calls: Calls) -> Steps[None]:
        """Yield the deltas of a turn, and None when more text is needed."""


class IncrementalParser:
    """A ``TurnParser`` that runs a reader.

    Args:
        has_one_call: drop all calls after the first.

    """

    def __init__(self, reader: TurnReader, calls: Calls, *, has_one_call: bool = False) -> None:
        self._source, self._calls, self._has_one_call = TextBuffer(), calls, has_one_call
        self._steps = reader.read(self._source, calls)

    def push(self, text: str) -> Sequence[Delta]:
        if not text:
            return []
        self._source.feed(text)
        return self._deltas()

    def finish(self, reason: str) -> Sequence[Delta]:
        self._source.end(is_cut=reason == "length")
        deltas = self._deltas()
        return [*deltas, EndDelta("tool_calls" if self._calls.count and reason == "stop" else reason)]

    def _deltas(self) -> list[Delta]:
        """Return all deltas up to the point where more text is needed."""
        deltas: list[Delta] = []
        for delta in self._steps:
            if delta is None:
                break
            if not (self._has_one_call and isinstance(delta, ToolCallDelta) and delta.index > 0):
                deltas.append(delta)
        return merged(deltas)


def merged(deltas: Iterable[Delta]) -> list[Delta]:
    """Merge adjacent deltas of the same type and call."""
    out: list[Delta] = []
    for delta in deltas:
        match (out[-1] if out else None), delta:
            case (TextDelta(before), TextDelta(text)):
                out[-1] = TextDelta(before + text)
            case (ReasoningDelta(before), ReasoningDelta(text)):
                out[-1] = ReasoningDelta(before + text)
            case (ToolCallDelta() as last, ToolCallDelta(id=None)):
                out[-1] = replace(last, arguments=last.arguments + delta.arguments)
            case _:
                out.append(delta)
    return out
