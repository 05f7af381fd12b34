"""Who owns which block of the KV cache. Torch-free."""

from __future__ import annotations


class BlockManager:
    """Hands out blocks of ``block_size`` tokens; a table is the list of blocks of one sequence."""

    def __init__(self, num_blocks: int, block_size: int):
        self.num_blocks, self.block_size = num_blocks, block_size
        self._free = list(range(num_blocks))[::-1]

    @property
    def num_free(self) -> int:
        return len(self._free)

    def can_hold(self, table: list[int], num_tokens: int) -> bool:
        """Whether a table can grow to hold so many tokens."""
        return self._missing(table, num_tokens) <= len(self._free)

    def hold(self, table: list[int], num_tokens: int) -> None:
        """Grow a table to hold so many tokens; ``can_hold`` must have said yes."""
        table.extend(self._free.pop() for _ in range(self._missing(table, num_tokens)))

    def free(self, table: list[int]) -> None:
        """Take back all blocks of a table and empty it."""
        self._free.extend(reversed(table))
        table.clear()

    def check_integrity(self, tables: list[list[int]]) -> None:
        """Raise AssertionError unless every block is free or in exactly one of the tables."""
        blocks = sorted([*self._free, *(block for table in tables for block in table)])
        if blocks != list(range(self.num_blocks)):
            raise AssertionError(f"blocks are lost or used twice: {blocks}")

    def _missing(self, table: list[int], num_tokens: int) -> int:
        return max(0, -(-num_tokens // self.block_size) - len(table))
