"""What an assistant's turn consists of, whichever dialect of the API tells of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from server.api.openai.generation import Generation
from server.engine.request import TextCodec, TokenEvent


@dataclass(frozen=True)
class TextPiece:
    """Some of what the assistant says."""

    text: str


@dataclass(frozen=True)
class ReasoningPiece:
    """Some of what it thinks before."""

    text: str


@dataclass(frozen=True)
class ToolCallPiece:
    """Some of a call of a tool; the first piece of each has its id and name."""

    index: int  # among the calls of the turn
    arguments: str = ""  # some of their JSON
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class EndPiece:
    """The turn is over; always the last."""

    finish_reason: str


Piece = TextPiece | ReasoningPiece | ToolCallPiece | EndPiece


class TurnParser(Protocol):
    """Makes pieces of the text of one turn as it comes."""

    def push(self, text: str) -> Sequence[Piece]:
        """The pieces that are whole now."""

    def finish(self, reason: str) -> Sequence[Piece]:
        """What was held back, and the end; ``reason`` is the engine's."""


class PlainText:
    """The parser where a model's text is what it says."""

    def push(self, text: str) -> Sequence[Piece]:
        return [TextPiece(text)] if text else []

    def finish(self, reason: str) -> Sequence[Piece]:
        return [EndPiece(reason)]


class ChatTurn:
    """An accepted chat: its generation, and the pieces of each of its choices.

    Args:
        codec: of the model that answers.
        parsers: of each choice, in the order of the generation's streams.

    """

    def __init__(self, generation: Generation, codec: TextCodec, parsers: Sequence[TurnParser]) -> None:
        self.generation, self.codec = generation, codec
        self._parsers = parsers

    def pieces(self, index: int, event: TokenEvent) -> list[Piece]:
        """What an event of a choice says; show it every event, once and in order."""
        parser = self._parsers[index]
        pieces = [*parser.push(event.text)]
        if event.finish_reason is not None:
            pieces += parser.finish(event.finish_reason)
        return pieces
