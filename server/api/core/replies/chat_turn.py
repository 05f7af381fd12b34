"""The turn of the assistant that answers a chat."""

from collections.abc import Sequence
from typing import Protocol

from server.api.core.replies.deltas import Delta, EndDelta, TextDelta
from server.api.core.requests.generation import Generation
from server.engine.interface import TextCodec, TokenEvent


class TurnParser(Protocol):
    """Parses the text of one turn into deltas as it comes."""

    def push(self, text: str) -> Sequence[Delta]:
        """Add text, and return the deltas that are certain now."""

    def finish(self, reason: str) -> Sequence[Delta]:
        """Return what was held back, and the end; ``reason`` is the engine's finish reason."""


class PlainText:
    """A parser that takes everything for text."""

    def push(self, text: str) -> Sequence[Delta]:
        return [TextDelta(text)] if text else []

    def finish(self, reason: str) -> Sequence[Delta]:
        return [EndDelta(reason)]


class ChatTurn:
    """An accepted chat: its generation, and the deltas of each of its choices.

    Args:
        codec: the codec of the model that answers.
        parsers: one for each choice, in the order of the generation's streams.

    """

    def __init__(self, generation: Generation, codec: TextCodec, parsers: Sequence[TurnParser]) -> None:
        self.generation, self.codec = generation, codec
        self._parsers = parsers

    def deltas(self, index: int, event: TokenEvent) -> list[Delta]:
        """Parse an event of a choice; call it for every event, once and in order."""
        parser = self._parsers[index]
        deltas = [*parser.push(event.text)]
        if event.finish_reason is not None:
            deltas += parser.finish(event.finish_reason)
        return deltas
