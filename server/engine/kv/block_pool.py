"""Pool of the blocks of one group of layers. Torch-free.

A block is free, in use by any number of sequences, or kept: unused, but findable by the hash of its content until it is
needed for something else, least recently used first. Blocks of extents without memory are none of these. A sequence's
next block is the one after its last block if possible, so that attention reads long runs instead of single blocks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Set as AbstractSet

import numpy as np

from server.engine.kv.extents import Extents

MIN_RUN = 16  # kept blocks that are evicted together where a new run begins


class BlockPool:
    """Blocks ``0 .. num_blocks - 1``.

    Args:
        extents: give memory to blocks; by default all blocks have memory.
    """

    def __init__(self, num_blocks: int, extents: Extents | None = None):
        self.num_blocks = num_blocks
        self._extents = extents or Extents.backed(num_blocks)
        self.num_used = 0  # blocks in use
        self._users = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._owners: list[tuple[str, ...]] = [()] * num_blocks  # of blocks with a hash
        self._found: dict[bytes, int] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()  # kept blocks, least recently used first
        self._released_at = [0] * num_blocks  # number of the release, for blocks in _unused
        self._num_releases = 0
        self._is_free = np.zeros(num_blocks, dtype=bool)  # free and with memory
        self._num_free = 0
        for extent in self._extents.with_memory:
            self._add_free(self._extents.blocks(extent))

    @property
    def num_available(self) -> int:
        """Blocks that ``take`` may return, including kept ones and ones that may get memory."""
        return self._num_free + len(self._unused) + self._extents.num_spare_blocks

    def bytes_to_take(self, count: int, num_reused: int = 0) -> tuple[int, int] | None:
        """Return the bytes that are missing to ``take`` so many blocks, without and with eviction of kept blocks.

        Args:
            num_reused: kept blocks that must not be evicted.

        Returns:
            None if there are not enough blocks, whatever the memory.
        """
        kept = len(self._unused) - num_reused
        needed = self._extents.bytes_for(count - self._num_free - kept)
        if needed is None:
            return None
        wanted = self._extents.bytes_for(count - self._num_free)
        return needed if wanted is None else wanted, needed

    def find(self, content: bytes) -> int | None:
        """Return the block with that content."""
        return self._found.get(content)

    def is_unused(self, block: int) -> bool:
        return self._users[block] == 0

    def use(self, block: int) -> None:
        """Let one more sequence use a block that ``find`` returned."""
        if self._users[block] == 0:
            del self._unused[block]
            self.num_used += 1
        self._users[block] += 1

    def take(self, after: int | None, count: int) -> list[int]:
        """Return blocks for new content, in order, next to ``after`` if possible.

        Args:
            count: at most ``num_available``.
        """
        taken: list[int] = []
        while len(taken) < count:
            block = self._neighbour(after)
            if block is None:
                self._grow_for(count - len(taken))
                block = self._new_run(count - len(taken))
            self._forget(block)
            self._users[block] = 1
            self.num_used += 1
            taken.append(block)
            after = block
        return taken

    def make_own(self, block: int) -> bool:
        """Make a block in use unfindable, and return True, if one sequence alone uses it."""
        if self._users[block] != 1:
            return False
        content = self._hashes[block]
        if content is not None:
            del self._found[content]
            self._hashes[block] = None
        return True

    def name(self, block: int, content: bytes, owners: tuple[str, ...] = ()) -> None:
        """Make a block findable by its content, unless another block with that content already is.

        Args:
            owners: weights that computed the content; see ``discard``.
        """
        if content not in self._found:
            self._found[content] = block
            self._hashes[block], self._owners[block] = content, owners

    def release(self, blocks: list[int]) -> None:
        """End one sequence's use of blocks. The last of them is evicted first."""
        self._num_releases += 1
        for block in reversed(blocks):
            self._users[block] -= 1
            if self._users[block]:
                continue
            self.num_used -= 1
            if self._hashes[block] is None:
                self._is_free[block] = True
                self._num_free += 1
            else:
                self._unused[block] = None
                self._released_at[block] = self._num_releases

    def discard(self, owner: str) -> None:
        """Free the kept blocks whose content an owner computed."""
        for block in [block for block in self._unused if owner in self._owners[block]]:
            self._forget(block)
            self._is_free[block] = True
            self._num_free += 1

    def forget_all(self) -> None:
        """Free all kept blocks, and make those in use unfindable, so that they are free once they are released."""
        for block in [*self._unused]:
            self._forget(block)
            self._is_free[block] = True
            self._num_free += 1
        for block in self._found.values():
            self._hashes[block] = None
        self._found.clear()

    def release_memory(
        self, is_enough: Callable[[], bool], wanted: AbstractSet[int] = frozenset(), *, spares_kept: bool = False
    ) -> None:
        """Release the memory of unused extents until it is enough: first free ones, then the least recently used.

        Args:
            wanted: kept blocks whose extents stay.
            spares_kept: whether the extents of all kept blocks stay.
        """
        in_use = {self._extents.of(block) for block in wanted}
        in_use.update(self._extents.of(block) for block, users in enumerate(self._users) if users)
        kept = dict.fromkeys(self._extents.of(block) for block in self._unused)
        free = [extent for extent in self._extents.with_memory if extent not in kept]
        for extent in free if spares_kept else (*free, *kept):
            if is_enough():
                return
            if extent in in_use:
                continue
            for block in self._extents.take_memory(extent):
                self._forget(block)

    def check_integrity(self, tables: list[list[int]]) -> None:
        """Raise AssertionError unless exactly the blocks of these tables are in use."""
        users = [0] * self.num_blocks
        for table in tables:
            for block in table:
                users[block] += 1
        if users != self._users or self.num_used != sum(map(bool, users)):
            raise AssertionError(f"users of blocks are {self._users}, not {users}")
        with_memory = [block for block in range(self.num_blocks) if self._extents.has_memory(block)]
        if sum(map(bool, users)) != sum(users[block] > 0 for block in with_memory):
            raise AssertionError("blocks without memory are in use")
        unused = {block for block in with_memory if not users[block] and not self._is_free[block]}
        if unused != set(self._unused) or self._num_free != int(self._is_free.sum()):
            raise AssertionError("blocks are neither free nor in use nor kept")
        named = {block: content for content, block in self._found.items()}
        if any(self._hashes[block] != content for block, content in named.items()) or unused - set(named):
            raise AssertionError("kept blocks can't be found by their content")

    def _neighbour(self, after: int | None) -> int | None:
        """Return the block after ``after`` if it is free, or none is and it was released longer ago than most."""
        if after is None or after + 1 >= self.num_blocks:
            return None
        block = after + 1
        if not self._extents.has_memory(block) and self._extents.can_grow:
            self._add_free(self._extents.give_memory(self._extents.of(block)))
        if self._is_free[block]:
            return block
        if self._num_free or self._extents.can_grow or block not in self._unused:
            return None
        oldest = self._released_at[next(iter(self._unused))]
        return block if self._released_at[block] <= (oldest + self._num_releases) // 2 else None

    def _add_free(self, blocks: range) -> None:
        """Add blocks that got memory."""
        self._is_free[blocks.start : blocks.stop] = True
        self._num_free += len(blocks)

    def _grow_for(self, count: int) -> None:
        """Give memory to an extent if no free run is as long as the run that is about to begin."""
        if self._extents.can_grow:
            start, end = self._longest_free()
            if end - start < min(count, self._extents.size):
                self._add_free(self._extents.give_memory(self._extents.widest_gap()))

    def _longest_free(self) -> tuple[int, int]:
        """Return the first block of the longest free run, and the block after its last."""
        if not self._num_free:
            return 0, 0
        edges = np.flatnonzero(np.diff(self._is_free, prepend=False, append=False))
        starts, ends = edges[::2], edges[1::2]
        longest = int((ends - starts).argmax())
        return int(starts[longest]), int(ends[longest])

    def _new_run(self, count: int) -> int:
        """Return the block where a run of about so many blocks should begin, with space to grow."""
        if self._num_free:
            start, end = self._longest_free()
            # In the middle, so that the sequence whose run ends before it can grow as well.
            return start if start == 0 else min((start + end) // 2, max(start, end - count))
        last = next(iter(self._unused))
        first, moment = last, self._released_at[last]
        while last - first + 1 < max(count, MIN_RUN) and first and self._is_of(first - 1, moment):
            first -= 1
        return first

    def _is_of(self, block: int, moment: int) -> bool:
        """Return whether a kept block was released at that moment."""
        return block in self._unused and self._released_at[block] == moment

    def _forget(self, block: int) -> None:
        if self._is_free[block]:
            self._is_free[block] = False
            self._num_free -= 1
            return
        del self._unused[block]
        content = self._hashes[block]
        if content is not None:
            del self._found[content]
            self._hashes[block] = None
