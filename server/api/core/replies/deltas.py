"""Parts of an assistant's turn as they are generated, in no dialect yet."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TextDelta:
    """Some of the text."""

    text: str


@dataclass(frozen=True)
class ReasoningDelta:
    """Some of the reasoning."""

    text: str


@dataclass(frozen=True)
class ToolCallDelta:
    """Some of a tool call; the first delta of each call has its id and name.

    Args:
        index: the number of the call in the turn, from 0.
        arguments: a part of the JSON of the arguments.

    """

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class EndDelta:
    """The end of the turn, which is always the last delta."""

    finish_reason: str


Delta = TextDelta | ReasoningDelta | ToolCallDelta | EndDelta
