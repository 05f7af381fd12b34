"""Images whose tokens see each other: ahead, too, in layers with a sliding window (Gemma 4). Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .step import SequenceChunk


@dataclass(frozen=True)
class Piece:
    """Neighbouring new tokens of a sequence."""

    first: int  # position
    last: int  # exclusive
    is_whole: bool = False  # whether each of them sees those that follow it, too

    @property
    def num_tokens(self) -> int:
        return self.last - self.first


def pieces_of(chunk: SequenceChunk, has_wholes: bool) -> Iterator[Piece]:
    """A chunk, cut where images begin and end whose tokens see each other.

    Args:
        has_wholes: whether they do in these layers.
    """
    position, end = chunk.num_cached, chunk.num_cached + chunk.num_tokens
    for first, last in chunk.media.wholes if chunk.media is not None and has_wholes else ():
        if last <= position or first >= end:
            continue
        if position < first:
            yield Piece(position, first)
        yield Piece(max(position, first), min(last, end), is_whole=True)
        position = min(last, end)
    if position < end:
        yield Piece(position, end)
