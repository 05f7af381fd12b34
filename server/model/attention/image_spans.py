"""Spans of image tokens that attend to each other in both directions in sliding-window layers (Gemma 4).

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from server.model.step import SequenceChunk


@dataclass(frozen=True)
class TokenSpan:
    """Consecutive new tokens of a sequence."""

    first: int  # position
    last: int  # exclusive
    is_bidirectional: bool = False  # whether each token also attends to those that follow it in the span

    @property
    def num_tokens(self) -> int:
        return self.last - self.first


def split_spans(chunk: SequenceChunk, has_bidirectional: bool) -> Iterator[TokenSpan]:
    """Split a chunk at the ends of its bidirectional image spans.

    Args:
        has_bidirectional: whether these layers attend in both directions within an image.
    """
    position, end = chunk.num_cached, chunk.num_cached + chunk.num_tokens
    for first, last in chunk.media.bidirectional_spans if chunk.media is not None and has_bidirectional else ():
        if last <= position or first >= end:
            continue
        if position < first:
            yield TokenSpan(position, first)
        yield TokenSpan(max(position, first), min(last, end), is_bidirectional=True)
        position = min(last, end)
    if position < end:
        yield TokenSpan(position, end)
