"""Blocks that are free, in use, or kept for their content."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.kv.block_pool import BlockPool

MOVES = ["grow", "reuse", "release", "discard", "forget"]


def num_runs(table: list[int]) -> int:
    return 1 + sum(after != before + 1 for before, after in pairwise(table))


def test_sequences_that_grow_alternately_stay_in_one_run_each() -> None:
    pool = BlockPool(64)
    tables: list[list[int]] = [[] for _ in range(4)]
    for _ in range(12):
        for table in tables:
            table.extend(pool.take(table[-1] if table else None, 1))
    assert [num_runs(table) for table in tables] == [1, 1, 1, 1]


def test_a_long_prompt_gets_one_run_if_it_fits() -> None:
    pool = BlockPool(64)
    pool.take(None, 10)
    assert num_runs(pool.take(None, 50)) == 1


def test_blocks_after_a_shared_prefix_are_kept_while_blocks_are_free() -> None:
    pool = BlockPool(16)
    table = pool.take(None, 4)
    for number, block in enumerate(table):
        pool.name(block, b"%d" % number)
    pool.release(table)
    pool.use(table[0])
    assert not set(pool.take(table[0], 12)) & set(table)
    assert pool.take(table[0], 1) == [table[1]]


def test_content_stays_findable_until_its_block_is_needed() -> None:
    pool = BlockPool(4)
    [block] = pool.take(None, 1)
    pool.name(block, b"once")
    pool.release([block])
    assert pool.num_available == 4
    assert pool.find(b"once") == block
    pool.use(block)
    assert pool.num_available == 3
    pool.release([block])
    pool.take(None, 4)
    assert pool.find(b"once") is None


def test_eviction_is_least_recently_used_and_from_the_end_of_a_sequence() -> None:
    pool = BlockPool(40)
    first, second = pool.take(None, 20), pool.take(None, 20)
    for block in first + second:
        pool.name(block, b"%d" % block)
    pool.release(first)
    pool.release(second)
    pool.take(None, 4)
    assert all(pool.find(b"%d" % block) is not None for block in [*first[:4], *second])
    assert sum(pool.find(b"%d" % block) is None for block in first[4:]) == 4


def test_recently_used_neighbours_are_not_taken() -> None:
    pool = BlockPool(4)
    old, kept, recent, other = pool.take(None, 4)
    for block in (old, kept, recent, other):
        pool.name(block, b"%d" % block)
    for block in (old, other, recent):
        pool.release([block])
    assert pool.take(kept, 1) == [old]


def test_the_same_content_twice_is_kept_once() -> None:
    pool = BlockPool(4)
    one, two = pool.take(None, 2)
    pool.name(one, b"same")
    pool.name(two, b"same")
    pool.release([two])
    pool.release([one])
    assert pool.find(b"same") == one
    pool.check_integrity([])


def test_discarding_an_owner_frees_its_kept_blocks_alone() -> None:
    pool = BlockPool(4)
    kept, used, shared, other = table = pool.take(None, 4)
    for block, owners in zip(table, (("a",), ("a",), ("b", "a"), ("b",)), strict=True):
        pool.name(block, b"%d" % block, owners)
    pool.release([kept, shared, other])
    pool.discard("a")
    assert [pool.find(b"%d" % block) for block in table] == [None, used, None, other]
    assert sorted(pool.take(None, 2)) == sorted([kept, shared])


def test_what_is_forgotten_is_free_once_it_is_released() -> None:
    pool = BlockPool(4)
    kept, used = table = pool.take(None, 2)
    for block in table:
        pool.name(block, b"%d" % block)
    pool.release([kept])
    pool.forget_all()
    assert [pool.find(b"%d" % block) for block in table] == [None, None]
    pool.check_integrity([[used]])
    pool.release([used])
    assert pool.find(b"%d" % used) is None
    pool.check_integrity([])


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(MOVES), st.integers(0, 7), st.integers(1, 6))))
def test_no_block_is_lost_or_used_for_two_contents(moves: list[tuple[str, int, int]]) -> None:
    pool = BlockPool(24)
    tables: dict[int, list[int]] = {}
    contents: dict[int, bytes] = {}  # what each block in use holds
    names = 0
    for kind, who, count in moves:
        table = tables.setdefault(who, [])
        if kind == "grow" and count <= pool.num_available:
            taken = pool.take(table[-1] if table else None, count)
            assert not set(taken) & {block for other in tables.values() for block in other}
            for block in taken:
                names += 1
                contents[block] = b"%d" % names
                pool.name(block, contents[block], (str(who),))
            table.extend(taken)
        elif kind == "reuse":
            for content in [b"%d" % (names - i) for i in range(count)]:
                block = pool.find(content)
                if block is not None and block not in table:
                    assert contents[block] == content
                    pool.use(block)
                    table.append(block)
        elif kind == "release":
            pool.release(tables.pop(who))
        elif kind == "discard":
            pool.discard(str(who))
        elif kind == "forget":
            pool.forget_all()
        pool.check_integrity(list(tables.values()))
