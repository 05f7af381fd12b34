"""Every new token attends to exactly the tokens it should see, each once, wherever its blocks lie."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from server.model.runs import GroupPlan, Span, find_runs, plan_group
from server.model.step import SequenceChunk

BLOCK_SIZE = 4


@dataclass(frozen=True)
class Company:
    """The chunks of a step, and for each slot of the cache whose token it holds: (sequence, position)."""

    chunks: list[SequenceChunk]
    owner: dict[int, tuple[int, int]]


@st.composite
def companies(draw: st.DrawFn, window: int | None) -> Company:
    """Some sequences whose blocks lie anywhere; those before the window are gone."""
    lengths = draw(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 90) | st.just(1)), min_size=1, max_size=4))
    counts = [-(-(cached + new) // BLOCK_SIZE) for cached, new in lengths]
    free = draw(st.permutations(range(sum(counts) + 3)) | st.just(list(range(sum(counts) + 3))))
    chunks, owner = [], {}
    for sequence, ((cached, new), count) in enumerate(zip(lengths, counts, strict=True)):
        table, free = list(free[:count]), free[count:]
        for position in range(cached + new):
            owner[table[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE] = (sequence, position)
        if window is not None:
            for block in range(max(0, cached - window + 1) // BLOCK_SIZE):
                table[block] = -1
        chunks.append(SequenceChunk([0] * new, cached, [table]))
    return Company(chunks, owner)


def seen_by_span(span: Span, index: int) -> list[int]:
    """The keys, counted from the span's first, that its query of that index sees."""
    if span.is_causal:
        return list(range(index + 1))
    if span.band is None:
        return list(range(span.length))
    return [k for k in range(span.length) if 0 <= span.band.offset + index - k < span.band.window]


def what_is_seen(plan: GroupPlan, company: Company) -> dict[int, Counter[tuple[int, int]]]:
    """By row of the step, the tokens it attends to and how often."""
    rows = [
        (sequence, chunk.num_cached + i)
        for sequence, chunk in enumerate(company.chunks)
        for i in range(chunk.num_tokens)
    ]
    seen: dict[int, Counter[tuple[int, int]]] = {row: Counter() for row in range(len(rows))}
    for spans in plan.rounds:
        for span in spans:
            for index in range(span.num_rows):
                keys = seen_by_span(span, index)
                assert keys, "a row of a span sees some of its keys"
                tokens = [rows[span.start + k] if span.is_new else company.owner[span.start + k] for k in keys]
                seen[span.first_row + index].update(tokens)
    return seen


@given(st.data(), st.none() | st.integers(1, 70))
def test_each_row_sees_what_it_should_once(data: st.DataObject, window: int | None) -> None:
    company = data.draw(companies(window))
    plan = plan_group(company.chunks, 0, window, BLOCK_SIZE)
    row = 0
    seen = what_is_seen(plan, company)
    for sequence, chunk in enumerate(company.chunks):
        for position in range(chunk.num_cached, chunk.num_cached + chunk.num_tokens):
            oldest = 0 if window is None else max(0, position - window + 1)
            assert seen[row] == Counter({(sequence, p): 1 for p in range(oldest, position + 1)})
            row += 1


@given(st.data(), st.none() | st.integers(1, 70))
def test_the_first_round_has_every_row_in_order_with_its_own_key(data: st.DataObject, window: int | None) -> None:
    company = data.draw(companies(window))
    plan = plan_group(company.chunks, 0, window, BLOCK_SIZE)
    rows = [span.first_row + i for span in plan.rounds[0] for i in range(span.num_rows)]
    assert rows == list(range(sum(chunk.num_tokens for chunk in company.chunks)))
    first = what_is_seen(GroupPlan(plan.slots, plan.rounds[:1]), company)
    for row, slot in enumerate(plan.slots):
        assert company.owner[slot] in first[row]
    for spans in plan.rounds[1:]:
        later = [span.first_row + i for span in spans for i in range(span.num_rows)]
        assert len(later) == len(set(later))


@given(st.data(), st.none() | st.integers(1, 70))
def test_new_tokens_are_kept_in_their_own_slots(data: st.DataObject, window: int | None) -> None:
    company = data.draw(companies(window))
    plan = plan_group(company.chunks, 0, window, BLOCK_SIZE)
    expected = [
        (sequence, chunk.num_cached + i)
        for sequence, chunk in enumerate(company.chunks)
        for i in range(chunk.num_tokens)
    ]
    assert [company.owner[slot] for slot in plan.slots] == expected


def test_neighbouring_blocks_are_one_run() -> None:
    assert find_runs([7, 8, 9, 2, 3, 5], BLOCK_SIZE, 1, 23) == [(29, 11), (8, 8), (20, 3)]
    assert find_runs([7, 8, 9], BLOCK_SIZE, 5, 6) == [(33, 1)]
    assert find_runs([7, 8, 9], BLOCK_SIZE, 4, 4) == []


def test_blocks_before_the_window_are_not_looked_at() -> None:
    assert find_runs([-1, -1, 5, 6], BLOCK_SIZE, 9, 15) == [(21, 6)]


def test_a_decode_in_one_run_is_one_span() -> None:
    plan = plan_group([SequenceChunk([0], 10, [[3, 4, 5]])], 0, None, BLOCK_SIZE)
    assert plan.rounds == [[Span(0, 1, 12, 11)]]
