"""Whole turns through a parser."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from server.api.formats.chat_format import ChatFormat
from server.api.turn import EndPiece, ReasoningPiece, TextPiece, ToolCallPiece, TurnParser
from tests.chat_formats import SCHEMAS, Family


@dataclass
class Turn:
    """What pieces say, put together."""

    content: str
    reasoning: str
    calls: list[tuple[str, str]]  # name and arguments
    ids: list[str]
    finish_reason: str


def parser_of(family: Family, *, has_one_call: bool = False, schemas: Any = SCHEMAS) -> TurnParser:
    chat_format = ChatFormat.of(family.traits)
    return chat_format.parser(schemas, chat_format.reasoning_after(family.prompt_end), has_one_call=has_one_call)


def read(parser: TurnParser, texts: Iterable[str], reason: str = "stop") -> Turn:
    """Show a parser some texts and the end; the pieces have to be in order."""
    turn = Turn("", "", [], [], "")
    pieces = [piece for text in texts for piece in parser.push(text)]
    for piece in [*pieces, *parser.finish(reason)]:
        assert not turn.finish_reason
        match piece:
            case TextPiece(text):
                turn.content += text
            case ReasoningPiece(text):
                turn.reasoning += text
            case ToolCallPiece(index, arguments, str(call_id), str(name)):
                assert index == len(turn.calls)
                turn.calls.append((name, arguments))
                turn.ids.append(call_id)
            case ToolCallPiece(index, arguments, None, None):
                assert index == len(turn.calls) - 1
                name, before = turn.calls[-1]
                turn.calls[-1] = name, before + arguments
            case EndPiece(finish_reason):
                turn.finish_reason = finish_reason
    return turn


def cut(text: str, places: Sequence[int]) -> list[str]:
    """A text in pieces, some of which may be empty."""
    ends = sorted(place % (len(text) + 1) for place in places)
    return [text[first:last] for first, last in zip([0, *ends], [*ends, len(text)], strict=True)]
