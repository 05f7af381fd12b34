"""Every new token attends to exactly the tokens it should see, each once, wherever its blocks lie."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.model.attention.attention_plan import GroupPlan, Span, plan_group, slot_ranges
from server.model.attention.window import oldest_seen
from server.model.prompt_media import PromptMedia
from server.model.step import SequenceChunk

BLOCK_SIZE = 4


@dataclass(frozen=True)
class Rule:
    """The window of a layer."""

    window: int | None
    is_chunked: bool = False

    def oldest(self, position: int) -> int:
        return 0 if self.window is None else max(0, oldest_seen(position, self.window, self.is_chunked))


RULES = st.just(Rule(None)) | st.builds(Rule, st.integers(1, 70), st.booleans())


@dataclass(frozen=True)
class Batch:
    """The chunks of a step, and for each slot of the cache whose token it holds: (sequence, position)."""

    chunks: list[SequenceChunk]
    owner: dict[int, tuple[int, int]]


@st.composite
def batches(draw: st.DrawFn, rule: Rule) -> Batch:
    """Draw sequences with blocks anywhere in the cache, without the blocks that no new token sees."""
    lengths = draw(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 90) | st.just(1)), min_size=1, max_size=4))
    counts = [-(-(cached + new) // BLOCK_SIZE) for cached, new in lengths]
    free = draw(st.permutations(range(sum(counts) + 3)) | st.just(list(range(sum(counts) + 3))))
    chunks, owner = [], {}
    for sequence, ((cached, new), count) in enumerate(zip(lengths, counts, strict=True)):
        table, free = list(free[:count]), free[count:]
        for position in range(cached + new):
            owner[table[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE] = (sequence, position)
        for block in range(rule.oldest(cached) // BLOCK_SIZE):
            table[block] = -1
        start, length = draw(st.tuples(st.integers(0, 120), st.integers(1, 60)))
        image = PromptMedia([], {}, [(start, start + length)]) if draw(st.booleans()) else None
        chunks.append(SequenceChunk([0] * new, cached, [table], media=image))
    return Batch(chunks, owner)


def latest(chunk: SequenceChunk, rule: Rule, position: int) -> int:
    """Return the last position that a token sees: its own, or the last of its image in layers with a sliding window."""
    if chunk.media is not None and rule.window is not None and not rule.is_chunked:
        for first, last in chunk.media.bidirectional_spans:
            if first <= position < last:
                return min(last, chunk.num_cached + chunk.num_tokens) - 1
    return position


def seen_by_span(span: Span, index: int) -> list[int]:
    """Return the keys, counted from the span's first, that one of its queries sees."""
    if span.is_causal:
        return list(range(index + 1))
    if span.band is None:
        return list(range(span.length))
    return [k for k in range(span.length) if 0 <= span.band.offset + index - k < span.band.window]


def seen_tokens(plan: GroupPlan, batch: Batch) -> dict[int, Counter[tuple[int, int]]]:
    """Return by row of the step the tokens it attends to, and how often."""
    rows = [
        (sequence, chunk.num_cached + i) for sequence, chunk in enumerate(batch.chunks) for i in range(chunk.num_tokens)
    ]
    seen: dict[int, Counter[tuple[int, int]]] = {row: Counter() for row in range(len(rows))}
    for spans in plan.rounds:
        for span in spans:
            for index in range(span.num_rows):
                keys = seen_by_span(span, index)
                assert keys, "a row of a span sees some of its keys"
                tokens = [rows[span.start + k] if span.is_new else batch.owner[span.start + k] for k in keys]
                seen[span.first_row + index].update(tokens)
    return seen


@pytest.mark.slow
@given(st.data(), RULES)
def test_each_row_sees_its_keys_once(data: st.DataObject, rule: Rule) -> None:
    batch = data.draw(batches(rule))
    plan = plan_group(batch.chunks, 0, rule.window, BLOCK_SIZE, rule.is_chunked)
    row = 0
    seen = seen_tokens(plan, batch)
    for sequence, chunk in enumerate(batch.chunks):
        for position in range(chunk.num_cached, chunk.num_cached + chunk.num_tokens):
            expected = range(rule.oldest(position), latest(chunk, rule, position) + 1)
            assert seen[row] == Counter({(sequence, p): 1 for p in expected})
            row += 1


@pytest.mark.slow
@given(st.data(), RULES)
def test_the_first_round_has_every_row_in_order_with_its_own_key(data: st.DataObject, rule: Rule) -> None:
    batch = data.draw(batches(rule))
    plan = plan_group(batch.chunks, 0, rule.window, BLOCK_SIZE, rule.is_chunked)
    rows = [span.first_row + i for span in plan.rounds[0] for i in range(span.num_rows)]
    assert rows == list(range(sum(chunk.num_tokens for chunk in batch.chunks)))
    first = seen_tokens(GroupPlan(plan.slots, plan.rounds[:1]), batch)
    for row, slot in enumerate(plan.slots):
        assert batch.owner[slot] in first[row]
    for spans in plan.rounds[1:]:
        later = [span.first_row + i for span in spans for i in range(span.num_rows)]
        assert len(later) == len(set(later))


@pytest.mark.slow
@given(st.data(), RULES)
def test_new_tokens_are_kept_in_their_own_slots(data: st.DataObject, rule: Rule) -> None:
    batch = data.draw(batches(rule))
    plan = plan_group(batch.chunks, 0, rule.window, BLOCK_SIZE, rule.is_chunked)
    expected = [
        (sequence, chunk.num_cached + i) for sequence, chunk in enumerate(batch.chunks) for i in range(chunk.num_tokens)
    ]
    assert [batch.owner[slot] for slot in plan.slots] == expected


def test_neighbouring_blocks_are_one_range() -> None:
    assert slot_ranges([7, 8, 9, 2, 3, 5], BLOCK_SIZE, 1, 23) == [(29, 11), (8, 8), (20, 3)]
    assert slot_ranges([7, 8, 9], BLOCK_SIZE, 5, 6) == [(33, 1)]
    assert slot_ranges([7, 8, 9], BLOCK_SIZE, 4, 4) == []


def test_blocks_before_the_window_are_not_looked_at() -> None:
    assert slot_ranges([-1, -1, 5, 6], BLOCK_SIZE, 9, 15) == [(21, 6)]


def test_a_window_is_the_last_tokens_and_a_chunk_begins_at_its_multiples() -> None:
    assert [oldest_seen(position, 3) for position in range(7)] == [-2, -1, 0, 1, 2, 3, 4]
    assert [oldest_seen(position, 3, is_chunked=True) for position in range(7)] == [0, 0, 0, 3, 3, 3, 6]


def test_a_piece_that_crosses_chunks_is_cut_there_and_reads_what_its_first_chunk_has() -> None:
    plan = plan_group([SequenceChunk([0] * 7, 7, [[-1, 5, 6, 7]])], 0, 5, BLOCK_SIZE, is_chunked=True)
    own = [Span(0, 3, 0, 3, True, True), Span(3, 4, 3, 4, True, True)]
    assert plan.rounds == [own, [Span(0, 3, 21, 2)]]


def test_a_decode_in_one_range_is_one_span() -> None:
    plan = plan_group([SequenceChunk([0], 10, [[3, 4, 5]])], 0, None, BLOCK_SIZE)
    assert plan.rounds == [[Span(0, 1, 12, 11)]]
