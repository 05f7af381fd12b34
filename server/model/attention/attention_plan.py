"""GroupPlan: the ranges of the KV cache that each new token of a step attends to. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from server.model.attention.image_spans import TokenSpan, split_spans
from server.model.attention.window import oldest_seen
from server.model.step import SequenceChunk

LEAST_PIECE = 64  # least number of new tokens of a layer with a window that attend at once


@dataclass(frozen=True)
class Band:
    """The keys that each query of a span sees: those with ``0 <= offset + query - key < window``."""

    num_queries: int
    num_keys: int
    offset: int  # position of the first query less that of the first key
    window: int


@dataclass(frozen=True)
class Span:
    """Some neighbouring new tokens, and some neighbouring keys that they attend to at once."""

    first_row: int  # index among the step's tokens
    num_rows: int
    start: int  # first key: a slot of the cache, or a row of the step's own keys
    length: int
    is_new: bool = False  # the keys are the step's own, taken from the model instead of the cache
    is_causal: bool = False  # query i sees keys 0 to i; otherwise all of them, or a band
    band: Band | None = None


@dataclass
class GroupPlan:
    """The spans of one group of layers in a step.

    A round holds at most one span for each row. The first round has a span of every row, in order, with the row's own
    key in it, so that results can be merged round by round. Each row of a span sees at least one of its keys.
    """

    slots: list[int] = field(default_factory=list)  # slots of the cache for the keys of the step's rows
    rounds: list[list[Span]] = field(default_factory=lambda: [[]])

    @property
    def has_new(self) -> bool:
        """True if some keys are taken from the model instead of the cache."""
        return any(span.is_new for span in self.rounds[0])

    def add(self, spans: Sequence[Span]) -> None:
        """Add spans of the same rows; the first holds the rows' own keys."""
        for index, span in enumerate(spans):
            if index == len(self.rounds):
                self.rounds.append([])
            self.rounds[index].append(span)


def slot_ranges(table: Sequence[int], block_size: int, first: int, last: int) -> list[tuple[int, int]]:
    """Return the contiguous slots of tokens ``first`` to ``last`` (exclusive) of a sequence, as ``(slot, length)``.

    Only blocks that hold some of these tokens are read from the table.
    """
    if first >= last:
        return []
    first_block = first // block_size
    blocks = np.asarray(table[first_block : -(-last // block_size)])
    breaks = (np.flatnonzero(np.diff(blocks) != 1) + 1).tolist()  # blocks that do not follow the one before
    ranges = []
    for begin, end in zip([0, *breaks], [*breaks, len(blocks)], strict=True):
        skipped = first % block_size if begin == 0 else 0
        stop = min((first_block + end) * block_size, last)
        ranges.append((int(blocks[begin]) * block_size + skipped, stop - (first_block + begin) * block_size - skipped))
    return ranges


def plan_group(
    chunks: Sequence[SequenceChunk],
    group: int,
    window: int | None,
    block_size: int,
    is_chunked: bool = False,
    *,
    has_decodes: bool = True,
) -> GroupPlan:
    """Return the plan of one group of layers, whose blocks are in ``block_tables[group]`` of each chunk.

    Keys in one contiguous range are read from the cache at once. Otherwise new tokens of a prompt attend to each
    other's keys as the model made them, and to earlier keys range by range.

    Args:
        window, is_chunked: the keys that a token sees (``window.oldest_seen``).
        has_decodes: False to leave out the spans of single new tokens, though not their slots.
    """
    plan, row = GroupPlan(), 0
    for chunk in chunks:
        table, first, count = chunk.block_tables[group], chunk.num_cached, chunk.num_tokens
        end = first + count
        if count == 1:
            oldest = 0 if window is None else max(0, oldest_seen(first, window, is_chunked))
            ranges = slot_ranges(table, block_size, oldest, end)
            plan.slots.append(ranges[-1][0] + ranges[-1][1] - 1)
            if has_decodes:
                plan.add([Span(row, 1, start, length) for start, length in reversed(ranges)])
        else:
            for start, length in slot_ranges(table, block_size, first, end):
                plan.slots.extend(range(start, start + length))
            for piece in split_spans(chunk, has_bidirectional=window is not None and not is_chunked):
                for spans in _prefill(
                    table, piece, row + piece.first - first, window, block_size=block_size, is_chunked=is_chunked
                ):
                    plan.add(spans)
        row += count
    return plan


def _prefill(
    table: Sequence[int], piece: TokenSpan, row: int, window: int | None, *, block_size: int, is_chunked: bool
) -> Iterator[list[Span]]:
    """Yield the spans of a piece of a prompt."""
    if window is not None and piece.is_bidirectional:
        return _bidirectional_spans(table, piece.first, piece.num_tokens, row, window=window, block_size=block_size)
    if window is None or piece.last <= window:
        return iter([_causal_spans(table, 0, piece.first, piece.num_tokens, row=row, block_size=block_size)])
    if is_chunked:
        return _chunked_spans(table, piece.first, piece.num_tokens, row, window=window, block_size=block_size)
    return _window_spans(table, piece.first, piece.num_tokens, row, window=window, block_size=block_size)


def _causal_spans(
    table: Sequence[int], oldest: int, first: int, count: int, *, row: int, block_size: int
) -> list[Span]:
    """Return the spans of a piece of a prompt whose tokens all see the same oldest token."""
    return [
        Span(row, count, row, count, is_new=True, is_causal=True),
        *(Span(row, count, start, length) for start, length in slot_ranges(table, block_size, oldest, first)),
    ]


def _chunked_spans(
    table: Sequence[int], first: int, count: int, row: int, *, window: int, block_size: int
) -> Iterator[list[Span]]:
    """Yield the spans of a piece of a prompt, chunk by chunk."""
    end, position = first + count, first
    while position < end:
        oldest = oldest_seen(position, window, is_chunked=True)
        last = min(end, oldest + window)
        yield _causal_spans(table, oldest, position, last - position, row=row + position - first, block_size=block_size)
        position = last


def _window_spans(
    table: Sequence[int], first: int, count: int, row: int, *, window: int, block_size: int
) -> Iterator[list[Span]]:
    """Yield the spans of a piece of a prompt in smaller pieces, so that little beyond the window is computed."""
    size = max(window, LEAST_PIECE)
    for begin in range(0, count, size):
        piece = min(size, count - begin)
        oldest = max(0, first + begin - window + 1)  # the position that the piece's first token still sees
        ranges = slot_ranges(table, block_size, oldest, first + begin + piece)
        if len(ranges) == 1:  # all keys have been written by now
            start, length = ranges[0]
            yield [Span(row + begin, piece, start, length, band=Band(piece, length, first + begin - oldest, window))]
            continue
        key = max(0, oldest - first)  # the first of the step's own keys
        length = begin + piece - key
        if key == begin and length <= window:
            spans = [Span(row + begin, piece, row + key, length, is_new=True, is_causal=True)]
        else:
            band = Band(piece, length, begin - key, window)
            spans = [Span(row + begin, piece, row + key, length, is_new=True, band=band)]
        ranges = slot_ranges(table, block_size, oldest, first)
        yield [*spans, *_cached_spans(ranges, first + begin - oldest, row + begin, piece, window)]


def _bidirectional_spans(
    table: Sequence[int], first: int, count: int, row: int, *, window: int, block_size: int
) -> Iterator[list[Span]]:
    """Yield the spans of tokens that see each other in both directions, and earlier tokens within the window."""
    band = None if count <= window else Band(count, count, count, window + count)  # wide enough for every key ahead
    oldest = max(0, first - window + 1)
    ranges = slot_ranges(table, block_size, oldest, first)
    yield [
        Span(row, count, row, count, is_new=True, band=band),
        *_cached_spans(ranges, first - oldest, row, count, window),
    ]


def _cached_spans(ranges: Sequence[tuple[int, int]], offset: int, row: int, count: int, window: int) -> Iterator[Span]:
    """Yield the spans of keys that were cached before some rows, from ``offset`` tokens before the first row on."""
    for start, length in ranges:
        rows = min(count, length - 1 + window - offset)  # later ones see none of these keys
        band = Band(rows, length, offset, window) if offset + rows > window else None
        yield Span(row, rows, start, length, band=band)
        offset -= length
