"""Memory of KV cache blocks. Torch-free.

Adjacent blocks form an extent, which gets and releases memory as one, so that calls are few and are for full pages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


def _ignore(*_: int) -> None:
    pass


@dataclass(eq=False)
class Allowance:
    """Limit of the bytes that the blocks of all groups take together.

    ``grow`` is called with the missing bytes, and raises ``limit_bytes`` as far as it can.
    """

    limit_bytes: int
    kept_bytes: int = 0  # up to here the limit is raised before unused blocks are evicted
    grow: Callable[[int], None] = _ignore
    taken_bytes: int = 0
    set_aside_bytes: int = 0  # part of the limit reserved for another group

    @property
    def spare_bytes(self) -> int:
        return max(0, self.limit_bytes - self.taken_bytes - self.set_aside_bytes)

    def make_spare(self, wanted: int, needed: int) -> bool:
        """Grow until so many bytes are spare, or as far as possible.

        Args:
            wanted: bytes needed if no kept block is evicted; granted up to ``kept_bytes``.
            needed: bytes needed if all kept blocks are evicted.

        Returns:
            True if ``needed`` bytes are spare.
        """
        if self.spare_bytes < wanted and self.taken_bytes + wanted <= self.kept_bytes:
            self.grow(wanted - self.spare_bytes)
        if self.spare_bytes < needed:
            self.grow(needed - self.spare_bytes)
        return self.spare_bytes >= needed


class Extents:
    """The extents of one group's blocks.

    Args:
        num_blocks: blocks of the group, a multiple of ``size``.
        size: blocks of an extent.
        block_bytes: bytes of one block, in all layers of the group.
        allowance: limit that all groups share.
        release: called with the first block and the number of blocks of an extent that releases its memory.
    """

    def __init__(
        self,
        num_blocks: int,
        size: int,
        block_bytes: int,
        allowance: Allowance,
        release: Callable[[int, int], None] = _ignore,
    ):
        if num_blocks % size:
            raise ValueError(f"{num_blocks} blocks are not a multiple of the extent size {size}")
        self.size, self._nbytes = size, size * block_bytes
        self._allowance, self._release = allowance, release
        self._has_memory = np.zeros(num_blocks // size, dtype=bool)

    @classmethod
    def backed(cls, num_blocks: int) -> Extents:
        """Return a single extent, which has memory from the beginning."""
        extents = cls(num_blocks, max(1, num_blocks), 0, Allowance(0))
        extents._has_memory[:] = True
        return extents

    def blocks(self, extent: int) -> range:
        return range(extent * self.size, (extent + 1) * self.size)

    def of(self, block: int) -> int:
        """Return the extent of a block."""
        return block // self.size

    def has_memory(self, block: int) -> bool:
        return bool(self._has_memory[block // self.size])

    @property
    def with_memory(self) -> list[int]:
        return np.flatnonzero(self._has_memory).tolist()

    @property
    def num_missing(self) -> int:
        """Extents without memory."""
        return len(self._has_memory) - int(np.count_nonzero(self._has_memory))

    @property
    def num_spare_blocks(self) -> int:
        """Blocks that may get memory."""
        return min(self.num_missing, self._num_spare()) * self.size

    @property
    def can_grow(self) -> bool:
        return self.num_missing > 0 and self._num_spare() > 0

    def bytes_for(self, num_blocks: int) -> int | None:
        """Return the bytes of extents for so many blocks; None if there are not enough extents without memory."""
        count = max(0, -(-num_blocks // self.size))
        return None if count > self.num_missing else count * self._nbytes

    def widest_gap(self) -> int:
        """Return the middle extent of the widest gap without memory, so that sequences on both sides can grow."""
        edges = np.flatnonzero(np.diff(~self._has_memory, prepend=False, append=False))
        starts, ends = edges[::2], edges[1::2]
        widest = int((ends - starts).argmax())
        start, end = int(starts[widest]), int(ends[widest])
        return start if start == 0 else (start + end) // 2

    def give_memory(self, extent: int) -> range:
        """Give memory to an extent and return its blocks."""
        self._has_memory[extent] = True
        self._allowance.taken_bytes += self._nbytes
        return self.blocks(extent)

    def take_memory(self, extent: int) -> range:
        """Release an extent's memory and return its blocks."""
        blocks = self.blocks(extent)
        self._has_memory[extent] = False
        self._allowance.taken_bytes -= self._nbytes
        self._release(blocks.start, len(blocks))
        return blocks

    def _num_spare(self) -> int:
        """Return the number of extents that fit the allowance."""
        return self._allowance.spare_bytes // self._nbytes if self._nbytes else len(self._has_memory)
