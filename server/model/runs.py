"""Which stretches of the KV cache each new token of a step attends to. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from .step import SequenceChunk
from .wholes import Piece, pieces_of
from .windows import oldest_seen

LEAST_PIECE = 64  # new tokens of a windowed layer that are attended at once, at the least


@dataclass(frozen=True)
class Band:
    """Which keys each query of a span sees, by how far back they lie: ``0 <= offset + query - key < window``."""

    num_queries: int
    num_keys: int
    offset: int  # of the first query's position from the first key's
    window: int


@dataclass(frozen=True)
class Span:
    """Some neighbouring new tokens and some neighbouring keys that they attend to at once."""

    first_row: int  # of the step's tokens
    num_rows: int
    start: int  # a slot of the cache, or a row of the step's own keys
    length: int
    is_new: bool = False  # the keys are the step's own, as they come from the model
    is_causal: bool = False  # query i sees keys 0 to i; else all of them, or a band
    band: Band | None = None


@dataclass
class GroupPlan:
    """What one group of layers does in a step.

    Each round holds at most one span a row. The first has one of every row, in order, and in it each row sees its own
    key, so that results can be merged round by round. No row of a span sees none of its keys.
    """

    slots: list[int] = field(default_factory=list)  # where the keys of the step's rows go
    rounds: list[list[Span]] = field(default_factory=lambda: [[]])

    @property
    def has_new(self) -> bool:
        """Whether keys are attended to as they come from the model."""
        return any(span.is_new for span in self.rounds[0])

    def add(self, spans: Sequence[Span]) -> None:
        """Spans of the same rows, first the one with the rows' own keys."""
        for index, span in enumerate(spans):
            if index == len(self.rounds):
                self.rounds.append([])
            self.rounds[index].append(span)


def find_runs(table: Sequence[int], block_size: int, first: int, last: int) -> list[tuple[int, int]]:
    """Where the tokens ``first`` to ``last`` (exclusive) of a sequence lie: ``(slot, length)`` of each stretch.

    Only blocks that hold some of these tokens are looked at.
    """
    if first >= last:
        return []
    first_block = first // block_size
    blocks = np.asarray(table[first_block : -(-last // block_size)])
    breaks = (np.flatnonzero(np.diff(blocks) != 1) + 1).tolist()  # indices of blocks that do not follow their neighbour
    runs = []
    for begin, end in zip([0, *breaks], [*breaks, len(blocks)], strict=True):
        skipped = first % block_size if begin == 0 else 0
        stop = min((first_block + end) * block_size, last)
        runs.append((int(blocks[begin]) * block_size + skipped, stop - (first_block + begin) * block_size - skipped))
    return runs


def plan_group(
    chunks: Sequence[SequenceChunk], group: int, window: int | None, block_size: int, is_chunked: bool = False
) -> GroupPlan:
    """The plan of one group of layers, whose blocks are in ``block_tables[group]`` of each chunk.

    What lies in one stretch is read from the cache at once. Else new tokens of a prompt attend to each other as they
    come from the model, and to what was there before stretch by stretch.

    Args:
        window, is_chunked: how far back a token sees (``windows.oldest_seen``).
    """
    plan, row = GroupPlan(), 0
    for chunk in chunks:
        table, first, count = chunk.block_tables[group], chunk.num_cached, chunk.num_tokens
        end = first + count
        if count == 1:
            oldest = 0 if window is None else max(0, oldest_seen(first, window, is_chunked))
            runs = find_runs(table, block_size, oldest, end)
            plan.slots.append(runs[-1][0] + runs[-1][1] - 1)
            plan.add([Span(row, 1, start, length) for start, length in reversed(runs)])
        else:
            for start, length in find_runs(table, block_size, first, end):
                plan.slots.extend(range(start, start + length))
            for piece in pieces_of(chunk, has_wholes=window is not None and not is_chunked):
                for spans in _prefill(table, piece, row + piece.first - first, window, block_size, is_chunked):
                    plan.add(spans)
        row += count
    return plan


def _prefill(
    table: Sequence[int], piece: Piece, row: int, window: int | None, block_size: int, is_chunked: bool
) -> Iterator[list[Span]]:
    """The spans of a piece of a prompt."""
    if window is not None and piece.is_whole:
        return _in_whole(table, piece.first, piece.num_tokens, row, window, block_size)
    if window is None or piece.last <= window:
        return iter([_in_full(table, 0, piece.first, piece.num_tokens, row, block_size)])
    if is_chunked:
        return _in_chunks(table, piece.first, piece.num_tokens, row, window, block_size)
    return _in_windows(table, piece.first, piece.num_tokens, row, window, block_size)


def _in_full(table: Sequence[int], oldest: int, first: int, count: int, row: int, block_size: int) -> list[Span]:
    """The spans of a piece of a prompt, all tokens of which see the same oldest one."""
    return [
        Span(row, count, row, count, is_new=True, is_causal=True),
        *(Span(row, count, start, length) for start, length in find_runs(table, block_size, oldest, first)),
    ]


def _in_chunks(
    table: Sequence[int], first: int, count: int, row: int, window: int, block_size: int
) -> Iterator[list[Span]]:
    """The spans of a piece of a prompt, chunk by chunk."""
    end, position = first + count, first
    while position < end:
        oldest = oldest_seen(position, window, is_chunked=True)
        last = min(end, oldest + window)
        yield _in_full(table, oldest, position, last - position, row + position - first, block_size)
        position = last


def _in_windows(
    table: Sequence[int], first: int, count: int, row: int, window: int, block_size: int
) -> Iterator[list[Span]]:
    """The spans of a piece of a prompt, which go in pieces, so that little beyond the window is computed."""
    size = max(window, LEAST_PIECE)
    for begin in range(0, count, size):
        piece = min(size, count - begin)
        oldest = max(0, first + begin - window + 1)  # the position that the piece's first token still sees
        runs = find_runs(table, block_size, oldest, first + begin + piece)
        if len(runs) == 1:  # all keys have been written by now
            start, length = runs[0]
            yield [Span(row + begin, piece, start, length, band=Band(piece, length, first + begin - oldest, window))]
            continue
        key = max(0, oldest - first)  # the first of the step's own keys
        length = begin + piece - key
        if key == begin and length <= window:
            spans = [Span(row + begin, piece, row + key, length, is_new=True, is_causal=True)]
        else:
            band = Band(piece, length, begin - key, window)
            spans = [Span(row + begin, piece, row + key, length, is_new=True, band=band)]
        runs = find_runs(table, block_size, oldest, first)
        yield [*spans, *_before(runs, first + begin - oldest, row + begin, piece, window)]


def _in_whole(
    table: Sequence[int], first: int, count: int, row: int, window: int, block_size: int
) -> Iterator[list[Span]]:
    """The spans of tokens that see each other ahead, and as far back as the window reaches."""
    band = None if count <= window else Band(count, count, count, window + count)  # in which no key lies too far ahead
    oldest = max(0, first - window + 1)
    runs = find_runs(table, block_size, oldest, first)
    yield [
        Span(row, count, row, count, is_new=True, band=band),
        *_before(runs, first - oldest, row, count, window),
    ]


def _before(runs: Sequence[tuple[int, int]], offset: int, row: int, count: int, window: int) -> Iterator[Span]:
    """Spans of keys that were written before some rows, the first of them ``offset`` tokens before the first row's."""
    for start, length in runs:
        rows = min(count, length - 1 + window - offset)  # later ones see none of these keys
        cut = Band(rows, length, offset, window) if offset + rows > window else None
        yield Span(row, rows, start, length, band=cut)
        offset -= length
