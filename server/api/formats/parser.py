"""A turn's parser: runs a format's reader over the text as it comes."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

from server.api.formats.calls import Calls
from server.api.formats.source import Source, Steps
from server.api.turn import EndPiece, Piece, ReasoningPiece, TextPiece, ToolCallPiece


class TurnReader(Protocol):
    """How a family of models writes a turn."""

    def read(self, source: Source, calls: Calls) -> Steps[None]:
        """Yield the pieces of a turn, and None where more of it has to come."""


class FormatParser:
    """A ``TurnParser`` over a reader.

    Args:
        has_one_call: only the first call is told of.

    """

    def __init__(self, reader: TurnReader, calls: Calls, *, has_one_call: bool = False) -> None:
        self._source, self._calls, self._has_one_call = Source(), calls, has_one_call
        self._steps = reader.read(self._source, calls)

    def push(self, text: str) -> Sequence[Piece]:
        if not text:
            return []
        self._source.feed(text)
        return self._pieces()

    def finish(self, reason: str) -> Sequence[Piece]:
        self._source.end()
        pieces = self._pieces()
        return [*pieces, EndPiece("tool_calls" if self._calls.count and reason == "stop" else reason)]

    def _pieces(self) -> list[Piece]:
        """All pieces up to where more text is needed."""
        pieces: list[Piece] = []
        for piece in self._steps:
            if piece is None:
                break
            if not (self._has_one_call and isinstance(piece, ToolCallPiece) and piece.index > 0):
                pieces.append(piece)
        return merged(pieces)


def merged(pieces: Iterable[Piece]) -> list[Piece]:
    """The same with neighbours of one kind as one."""
    out: list[Piece] = []
    for piece in pieces:
        match (out[-1] if out else None), piece:
            case (TextPiece(before), TextPiece(text)):
                out[-1] = TextPiece(before + text)
            case (ReasoningPiece(before), ReasoningPiece(text)):
                out[-1] = ReasoningPiece(before + text)
            case (ToolCallPiece() as last, ToolCallPiece(id=None)):
                out[-1] = replace(last, arguments=last.arguments + piece.arguments)
            case _:
                out.append(piece)
    return out
