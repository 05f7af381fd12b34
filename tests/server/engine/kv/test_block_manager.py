"""Block allocation and prefix caching, with and without windows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.kv.block_manager import OUT_OF_WINDOW, BlockGroup, BlockManager, SequenceBlocks
from server.model.attention.window import oldest_seen

SIZE = 4


def manager(*groups: tuple[int, int | None] | BlockGroup) -> BlockManager:
    return BlockManager([group if isinstance(group, BlockGroup) else BlockGroup(*group) for group in groups], SIZE)


def chunks(num_blocks: int, size: int) -> BlockGroup:
    return BlockGroup(num_blocks, size, is_chunked=True)


def fill(blocks: BlockManager, tokens: list[int], *, step: int = 100) -> SequenceBlocks:
    """Compute a sequence through the cache, ``step`` tokens at a time."""
    sequence = blocks.new_blocks()
    num_cached = blocks.num_reusable(sequence, tokens)
    blocks.reuse_prefix(sequence, num_cached)
    while num_cached < len(tokens):
        count = min(step, len(tokens) - num_cached)
        assert blocks.can_allocate(sequence, num_cached + count)
        blocks.allocate(sequence, num_cached + count)
        num_cached += count
        blocks.cache_full_blocks(sequence, tokens, num_cached)
    return sequence


def test_a_prompt_with_a_cached_prefix_reuses_full_blocks_and_computes_at_least_one_token() -> None:
    blocks = manager((16, None))
    first = fill(blocks, list(range(12)))
    again = blocks.new_blocks()
    assert blocks.num_reusable(again, list(range(12))) == 8
    assert blocks.num_reusable(blocks.new_blocks(), list(range(13))) == 12
    assert blocks.num_reusable(blocks.new_blocks(), [0, 1, 2, 3, 4, 5, 6, 99, 8, 9]) == 4
    assert blocks.num_reusable(blocks.new_blocks(), [99, *range(1, 12)]) == 0
    blocks.reuse_prefix(again, 8)
    assert again.tables[0] == first.tables[0][:2]
    blocks.check_integrity([first, again])


def test_a_sequence_has_its_blocks_up_to_the_end_of_the_last_one_in_every_group() -> None:
    blocks = manager((16, None), (16, 6))
    sequence = fill(blocks, list(range(10)))
    assert blocks.has_allocated(sequence, 12)
    assert not blocks.has_allocated(sequence, 13)
    sequence.tables[1].pop()
    assert not blocks.has_allocated(sequence, 12)


def test_equal_tokens_after_another_prefix_are_another_block() -> None:
    blocks = manager((16, None))
    fill(blocks, [1, 1, 1, 1, 5, 5, 5, 5, 0])
    assert blocks.num_reusable(blocks.new_blocks(), [2, 2, 2, 2, 5, 5, 5, 5, 0]) == 0


def test_blocks_of_an_ended_sequence_are_reused_including_generated_ones() -> None:
    blocks = manager((16, None))
    blocks.free(fill(blocks, list(range(20)), step=1))
    assert blocks.num_reusable(blocks.new_blocks(), list(range(30))) == 20


def test_reused_blocks_do_not_count_as_available() -> None:
    blocks = manager((4, None))
    blocks.free(fill(blocks, list(range(16))))
    sequence = blocks.new_blocks()
    tokens = [*range(12), 99, 98, 97, 96, 95]
    assert blocks.num_reusable(sequence, tokens) == 12
    assert blocks.can_allocate(sequence, 16, 12)
    assert not blocks.can_allocate(sequence, 17, 12)


def test_a_window_releases_blocks_that_no_later_token_sees() -> None:
    blocks = manager((16, None), (16, 6))
    sequence = fill(blocks, list(range(30)), step=1)
    # Position 30 sees 25 and later.
    assert [block == OUT_OF_WINDOW for block in sequence.tables[1]] == [True] * 6 + [False] * 2
    assert OUT_OF_WINDOW not in sequence.tables[0]
    blocks.check_integrity([sequence])


def test_a_window_needs_few_blocks_for_any_length() -> None:
    blocks = manager((16, None), (4, 6))
    blocks.free(fill(blocks, list(range(60)), step=4))
    blocks.check_integrity([])


def test_blocks_before_a_window_are_recycled_once_no_other_sequence_uses_them() -> None:
    blocks = manager((32, None), (4, 6))
    sequence, other = fill(blocks, list(range(12))), blocks.new_blocks()
    blocks.reuse_prefix(other, blocks.num_reusable(other, list(range(13))))
    before = list(sequence.tables[1])
    blocks.recycle(sequence, 20, 28, 0)
    assert sequence.tables[1] == before == [OUT_OF_WINDOW, *other.tables[1][1:]]
    blocks.free(other)
    blocks.recycle(sequence, 20, 28, 0)
    assert sequence.tables[1] == [OUT_OF_WINDOW] * 3 + before[1:]
    assert blocks.num_reusable(other, list(range(13))) == SIZE  # what was released before, in the usual way
    blocks.check_integrity([sequence])


def test_a_prefix_is_reused_if_the_blocks_of_its_window_are_cached() -> None:
    blocks = manager((32, None), (32, 6))
    tokens = list(range(41))
    leader = fill(blocks, tokens, step=4)
    sequence = blocks.new_blocks()
    assert blocks.num_reusable(sequence, tokens) == 40
    blocks.reuse_prefix(sequence, 40)
    assert sequence.tables[1][:8] == [OUT_OF_WINDOW] * 8
    assert sequence.tables[1][9] == leader.tables[1][9]
    blocks.check_integrity([leader, sequence])


def test_a_prefix_whose_window_was_evicted_is_shorter_or_none() -> None:
    blocks = manager((64, None), (8, 6))
    blocks.free(fill(blocks, list(range(41)), step=4))
    blocks.free(fill(blocks, [99] * 33, step=4))  # takes the window's blocks
    assert blocks.num_reusable(blocks.new_blocks(), list(range(41))) < 40


@pytest.mark.parametrize(("num_tokens", "num_gone"), [(7, 0), (11, 0), (12, 3), (13, 3), (23, 3), (24, 6), (25, 6)])
def test_a_chunk_is_released_when_the_next_one_begins(num_tokens: int, num_gone: int) -> None:
    blocks = manager((16, None), chunks(16, 12))
    sequence = fill(blocks, list(range(num_tokens)), step=1)
    assert [block == OUT_OF_WINDOW for block in sequence.tables[1]] == [
        index < num_gone for index in range(-(-num_tokens // SIZE))
    ]
    assert OUT_OF_WINDOW not in sequence.tables[0]
    blocks.check_integrity([sequence])


def test_a_block_on_the_border_of_two_chunks_is_kept() -> None:
    blocks = manager(chunks(16, 6))
    sequence = fill(blocks, list(range(20)), step=1)
    # Position 20 sees 18 and later.
    assert [block == OUT_OF_WINDOW for block in sequence.tables[0]] == [True] * 4 + [False]


def test_chunks_need_few_blocks_for_any_length() -> None:
    blocks = manager((16, None), chunks(4, 6))
    blocks.free(fill(blocks, list(range(60)), step=4))
    blocks.check_integrity([])


def test_a_prefix_of_complete_chunks_needs_none_of_their_blocks() -> None:
    blocks = manager((32, None), chunks(7, 12))
    tokens = list(range(25))
    blocks.free(fill(blocks, tokens, step=4))
    blocks.free(fill(blocks, [99] * 3 + list(range(22)), step=4))  # takes the chunks' blocks
    sequence = blocks.new_blocks()
    assert blocks.num_reusable(sequence, tokens) == 24
    assert blocks.can_allocate(sequence, 25, 24)
    blocks.reuse_prefix(sequence, 24)
    blocks.allocate(sequence, 25)
    assert [block == OUT_OF_WINDOW for block in sequence.tables[1]] == [True] * 6 + [False]
    blocks.check_integrity([sequence])


def test_a_prefix_that_ends_within_a_chunk_needs_the_chunk_so_far() -> None:
    blocks = manager((32, None), chunks(32, 12))
    leader = fill(blocks, list(range(21)), step=4)
    sequence = blocks.new_blocks()
    assert blocks.num_reusable(sequence, list(range(21))) == 20
    blocks.reuse_prefix(sequence, 20)
    assert sequence.tables[1] == [OUT_OF_WINDOW] * 3 + leader.tables[1][3:5]
    blocks.check_integrity([leader, sequence])


@pytest.mark.slow
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 1), st.integers(1, 9)), min_size=1, max_size=6),
    st.integers(1, 20),
    st.booleans(),
)
def test_reused_blocks_hold_all_tokens_that_the_next_token_sees(
    texts: list[tuple[int, int, int]], window: int, is_chunked: bool
) -> None:
    """Sequences of two beginnings, one after the other, over few blocks: what tables name holds the right tokens."""
    blocks = BlockManager([BlockGroup(14), BlockGroup(14, window, is_chunked)], SIZE)
    held: dict[int, tuple[int, ...]] = {}  # by block of the second group, all tokens up to its end
    for length, kind, step in texts:
        tokens = [kind] + [7] * (length - 1)
        sequence = blocks.new_blocks()
        num_cached = blocks.num_reusable(sequence, tokens)
        blocks.reuse_prefix(sequence, num_cached)
        while num_cached < length:
            oldest = max(0, oldest_seen(num_cached, window, is_chunked))
            for index in range(oldest // SIZE, num_cached // SIZE):
                assert held[sequence.tables[1][index]] == tuple(tokens[: (index + 1) * SIZE])
            first, num_cached = num_cached, min(length, num_cached + step)
            blocks.allocate(sequence, num_cached)
            for index in range(first // SIZE, num_cached // SIZE):
                held[sequence.tables[1][index]] = tuple(tokens[: (index + 1) * SIZE])
            blocks.cache_full_blocks(sequence, tokens, num_cached)
            blocks.check_integrity([sequence])
        blocks.free(sequence)
    blocks.check_integrity([])


def test_blocks_are_pending_until_they_are_filled_or_abandoned() -> None:
    blocks = manager((16, None))
    tokens = list(range(13))
    for is_kept in (True, False):
        leader, follower = blocks.new_blocks(), blocks.new_blocks()
        for sequence in (leader, follower):
            assert blocks.num_reusable(sequence, tokens) == 0
        assert not blocks.is_pending(follower, 0)
        blocks.mark_pending(leader)
        assert blocks.is_pending(follower, 0)
        blocks.allocate(leader, 13)
        if is_kept:
            blocks.cache_full_blocks(leader, tokens, 8)
            assert blocks.num_reusable(follower, tokens) == 8
            assert blocks.is_pending(follower, 8)
        blocks.free(leader)
        assert not blocks.is_pending(follower, 8)
        blocks = manager((16, None))


def test_check_integrity_finds_a_block_without_owner() -> None:
    blocks = manager((4, None))
    fill(blocks, list(range(6)))
    with pytest.raises(AssertionError, match="users of blocks"):
        blocks.check_integrity([])
