"""Memory of blocks: taken on first use, and released."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.kv.block_manager import BlockGroup, BlockManager, SequenceBlocks
from server.engine.kv.block_pool import BlockPool
from server.engine.kv.extents import Allowance, Extents

SIZE = 4  # tokens a block
BLOCK_BYTES = 10
EXTENT = 4  # blocks
MOVES = ["grow", "release", "limit", "give back"]


def pool_of(num_blocks: int, limit_bytes: int) -> tuple[BlockPool, Allowance, list[tuple[int, int]]]:
    """A pool, its allowance, and the extents that it released."""
    allowance, released = Allowance(limit_bytes), list[tuple[int, int]]()
    extents = Extents(num_blocks, EXTENT, BLOCK_BYTES, allowance, lambda *extent: released.append(extent))
    return BlockPool(num_blocks, extents), allowance, released


def hold(blocks: BlockManager, sequence: SequenceBlocks, num_tokens: int) -> bool:
    if not blocks.can_allocate(sequence, num_tokens):
        return False
    blocks.allocate(sequence, num_tokens)
    return True


def test_memory_is_taken_with_the_first_block_of_an_extent() -> None:
    pool, allowance, _ = pool_of(16, 1000)
    assert allowance.taken_bytes == 0
    [first] = pool.take(None, 1)
    assert allowance.taken_bytes == EXTENT * BLOCK_BYTES
    pool.take(first, 1)
    assert allowance.taken_bytes == EXTENT * BLOCK_BYTES


def test_no_more_blocks_are_taken_than_may_have_memory() -> None:
    pool, allowance, _ = pool_of(16, 2 * EXTENT * BLOCK_BYTES + 1)
    assert pool.num_available == 2 * EXTENT
    pool.take(None, 2 * EXTENT)
    assert pool.num_available == 0
    allowance.limit_bytes += EXTENT * BLOCK_BYTES
    assert pool.num_available == EXTENT


def test_free_extents_release_memory_before_those_with_content() -> None:
    pool, allowance, released = pool_of(16, 1000)
    kept, free = pool.take(None, EXTENT), pool.take(None, EXTENT)
    for block in kept:
        pool.name(block, b"%d" % block)
    pool.release(kept)
    pool.release(free)
    pool.release_memory(lambda: allowance.taken_bytes <= EXTENT * BLOCK_BYTES)
    assert released == [(free[0] // EXTENT * EXTENT, EXTENT)]
    assert pool.find(b"%d" % kept[0]) == kept[0]
    pool.release_memory(lambda: allowance.taken_bytes == 0)
    assert pool.find(b"%d" % kept[0]) is None
    pool.check_integrity([])


def test_a_partly_used_extent_keeps_its_memory() -> None:
    pool, allowance, released = pool_of(16, 1000)
    table = pool.take(None, 2)
    pool.release(table[1:])
    pool.release_memory(lambda: False)
    assert (allowance.taken_bytes, released) == (EXTENT * BLOCK_BYTES, [])


def test_the_allowance_grows_before_a_sequence_has_to_wait() -> None:
    asked = []

    def grow(nbytes: int) -> None:
        asked.append(nbytes)
        allowance.limit_bytes += nbytes

    allowance = Allowance(EXTENT * BLOCK_BYTES, grow=grow)
    blocks = BlockManager([BlockGroup(16, None, False, EXTENT, BLOCK_BYTES)], SIZE, allowance=allowance)
    sequence = blocks.new_blocks()
    assert hold(blocks, sequence, EXTENT * SIZE)
    assert not asked
    assert hold(blocks, sequence, EXTENT * SIZE + 1)
    assert asked == [EXTENT * BLOCK_BYTES]


def test_kept_blocks_are_evicted_only_beyond_kept_bytes() -> None:
    def found_after(kept_bytes: int) -> int:
        def grow(nbytes: int) -> None:
            allowance.limit_bytes += nbytes

        allowance = Allowance(EXTENT * BLOCK_BYTES, kept_bytes, grow)
        blocks = BlockManager([BlockGroup(16, None, False, EXTENT, BLOCK_BYTES)], SIZE, allowance=allowance)
        tokens = list(range(EXTENT * SIZE))
        first, second = blocks.new_blocks(), blocks.new_blocks()
        assert hold(blocks, first, len(tokens))
        blocks.cache_full_blocks(first, tokens, len(tokens))
        blocks.free(first)
        assert hold(blocks, second, len(tokens))
        return blocks.num_reusable(blocks.new_blocks(), [*tokens, 0])

    assert found_after(kept_bytes=2 * EXTENT * BLOCK_BYTES) == EXTENT * SIZE
    assert found_after(kept_bytes=EXTENT * BLOCK_BYTES) == 0


def test_memory_kept_by_one_group_goes_to_another_that_needs_it() -> None:
    groups = [BlockGroup(16, None, False, EXTENT, BLOCK_BYTES), BlockGroup(16, 8, False, EXTENT, BLOCK_BYTES)]
    blocks = BlockManager(groups, SIZE, allowance=Allowance(4 * EXTENT * BLOCK_BYTES))
    tokens = list(range(12 * SIZE))
    first = blocks.new_blocks()
    for end in range(SIZE, len(tokens) + 1, SIZE):
        assert hold(blocks, first, end)
        blocks.cache_full_blocks(first, tokens, end)
    blocks.free(first)
    second = blocks.new_blocks()
    assert hold(blocks, second, 2 * EXTENT * SIZE)
    blocks.check_integrity([second])


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["grow", "release", "limit", "give back"]), st.integers(0, 4), st.integers(1, 9))
    )
)
def test_blocks_in_use_always_have_memory_within_the_limit(moves: list[tuple[str, int, int]]) -> None:
    pool, allowance, _ = pool_of(24, 3 * EXTENT * BLOCK_BYTES)
    tables: dict[int, list[int]] = {}
    names = 0
    for kind, who, count in moves:
        table = tables.setdefault(who, [])
        if kind == "grow" and count <= pool.num_available:
            table.extend(pool.take(table[-1] if table else None, count))
            names += 1
            pool.name(table[-1], b"%d" % names)
        elif kind == "release":
            pool.release(tables.pop(who))
        elif kind == "limit":
            allowance.limit_bytes = max(allowance.taken_bytes, count * EXTENT * BLOCK_BYTES)
        elif kind == "give back":
            pool.release_memory(lambda least=count: allowance.taken_bytes <= least * EXTENT * BLOCK_BYTES)  # type: ignore[misc]
        assert allowance.taken_bytes <= allowance.limit_bytes
        pool.check_integrity(list(tables.values()))
