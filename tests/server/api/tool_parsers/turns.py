"""Runs a parser over complete turns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from server.api.core.replies.chat_turn import TurnParser
from server.api.core.replies.deltas import EndDelta, ReasoningDelta, TextDelta, ToolCallDelta
from server.api.tool_parsers.chat_format import ChatFormat
from tests.chat_formats import SCHEMAS, Family


@dataclass
class Turn:
    """A turn, put together from its deltas."""

    content: str
    reasoning: str
    calls: list[tuple[str, str]]  # name and arguments
    ids: list[str]
    finish_reason: str


def parser_of(family: Family, *, has_one_call: bool = False, schemas: Any = SCHEMAS) -> TurnParser:
    chat_format = ChatFormat.of(family.traits)
    return chat_format.parser(schemas, chat_format.reasoning_after(family.prompt_end), has_one_call=has_one_call)


def read(parser: TurnParser, texts: Iterable[str], reason: str = "stop") -> Turn:
    """Parse some texts and the end; the deltas must be in order."""
    turn = Turn("", "", [], [], "")
    pieces = [piece for text in texts for piece in parser.push(text)]
    for piece in [*pieces, *parser.finish(reason)]:
        assert not turn.finish_reason
        match piece:
            case TextDelta(text):
                turn.content += text
            case ReasoningDelta(text):
                turn.reasoning += text
            case ToolCallDelta(index, arguments, str(call_id), str(name)):
                assert index == len(turn.calls)
                turn.calls.append((name, arguments))
                turn.ids.append(call_id)
            case ToolCallDelta(index, arguments, None, None):
                assert index == len(turn.calls) - 1
                name, before = turn.calls[-1]
                turn.calls[-1] = name, before + arguments
            case EndDelta(finish_reason):
                turn.finish_reason = finish_reason
    return turn


def cut(text: str, places: Sequence[int]) -> list[str]:
    """Split a text into parts, some of which may be empty."""
    ends = sorted(place % (len(text) + 1) for place in places)
    return [text[first:last] for first, last in zip([0, *ends], [*ends, len(text)], strict=True)]
