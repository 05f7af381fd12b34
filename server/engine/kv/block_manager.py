"""Allocation of KV cache blocks to sequences, and prefix caching. Torch-free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from server.engine.kv.block_pool import BlockPool
from server.engine.kv.extents import Allowance, Extents
from server.engine.kv.state_snapshots import SnapshotPool
from server.model.attention.window import oldest_seen

OUT_OF_WINDOW = -1  # in a block table: a block before the window, which was released
DIGEST_BYTES = 16
MIN_SNAPSHOT_TOKENS = 64  # a step is cut at a full block, for a snapshot, only if it keeps so many tokens


@dataclass(frozen=True)
class BlockGroup:
    """Blocks of the layers that have the same attention window."""

    num_blocks: int
    window: int | None = None  # tokens that a query sees, its own included; None means all
    is_chunked: bool = False  # a query sees its own chunk of ``window`` tokens, not the last ones
    extent_blocks: int = 0  # adjacent blocks that get memory together; 0 if all have memory
    block_bytes: int = 0


class PlannedSnapshot(NamedTuple):
    """A snapshot that a step is to write."""

    slot: int
    is_decode: bool  # whether it is a decode step


@dataclass(eq=False)
class SequenceBlocks:
    """Blocks and snapshots of one sequence."""

    tables: list[list[int]]  # by group; entry i holds tokens from i * block_size on, or is OUT_OF_WINDOW
    salt: bytes = b""  # part of every hash; sequences with different ones share no block
    owners: tuple[str, ...] = ()  # weights that compute the content; see ``BlockManager.discard``
    hashes: list[bytes] = field(default_factory=list)  # of each full block, over the salt and all tokens up to its end
    num_cached_blocks: int = 0  # full blocks that other sequences can find
    num_pending: int = 0  # blocks of its prompt that it is about to fill
    resumes: int | None = None  # slot of the snapshot that its next step continues from
    snapshots: dict[int, PlannedSnapshot] = field(default_factory=dict)  # by the number of tokens before them
    last_snapshot: bytes | None = None  # hash of its last snapshot while decoding; the next one replaces it


class BlockManager:
    """Allocates blocks of ``block_size`` tokens to sequences, in every group.

    A full block is identified by the hash of its tokens and all tokens before them. A sequence that begins like an
    earlier one reuses the earlier one's blocks, even long after that has ended. Groups with a window release blocks
    that no later token sees. A prefix can be reused if the blocks that its next token sees are cached; at the end of a
    chunk of a chunked group, these are none.

    Args:
        shares_prefixes: whether a sequence can reuse blocks of another; if not, nothing is reused.
        snapshots: slots for copies of recurrent states, if a sequence needs more than blocks to continue.
        allowance: bytes that blocks with extents may take; by default all that they need.
        release: called with each group, first block and number of blocks whose memory is released.
    """

    def __init__(
        self,
        groups: Sequence[BlockGroup],
        block_size: int,
        shares_prefixes: bool = True,
        *,
        snapshots: SnapshotPool | None = None,
        allowance: Allowance | None = None,
        release: Callable[[int, int, int], None] = lambda *_: None,
    ):
        self.groups, self.block_size = tuple(groups), block_size
        self._allowance = allowance or Allowance(sum(group.num_blocks * group.block_bytes for group in groups))
        self._pools = [
            BlockPool(
                group.num_blocks,
                Extents(group.num_blocks, group.extent_blocks, group.block_bytes, self._allowance, partial(release, i))
                if group.extent_blocks
                else None,
            )
            for i, group in enumerate(groups)
        ]
        self._shares_prefixes, self._snapshots = shares_prefixes, snapshots
        self._has_windows = any(group.window is not None for group in groups)
        self._pending: Counter[bytes] = Counter()  # number of running sequences about to fill a block

    @property
    def usage(self) -> float:
        """Part of blocks in use in the fullest group, 0 to 1."""
        return max(pool.num_used / pool.num_blocks for pool in self._pools)

    @property
    def used_bytes(self) -> int:
        """Bytes of the blocks in use; of a partly used extent, only the used blocks count."""
        return sum(pool.num_used * group.block_bytes for pool, group in zip(self._pools, self.groups, strict=True))

    def new_blocks(self, salt: bytes = b"", owners: tuple[str, ...] = ()) -> SequenceBlocks:
        return SequenceBlocks([[] for _ in self.groups], salt, owners)

    def num_reusable(self, blocks: SequenceBlocks, token_ids: Sequence[int]) -> int:
        """Return how many of a sequence's first tokens are cached; at least one token is left to compute."""
        num_blocks = (len(token_ids) - 1) // self.block_size
        hashes = self._hashes(blocks, token_ids, num_blocks)
        return self.block_size * self._longest_prefix(hashes)

    def is_pending(self, blocks: SequenceBlocks, num_reusable: int) -> bool:
        """Return whether a running sequence is about to fill the block after the reusable ones."""
        index = num_reusable // self.block_size
        return index < len(blocks.hashes) and blocks.hashes[index] in self._pending

    def has_allocated(self, blocks: SequenceBlocks, num_tokens: int) -> bool:
        """Return whether a sequence has blocks for so many tokens already."""
        num_blocks = -(-num_tokens // self.block_size)
        for table in blocks.tables:  # noqa: SIM110  a generator takes longer, for each sequence in each step
            if len(table) < num_blocks:
                return False
        return True

    def can_allocate(self, blocks: SequenceBlocks, num_tokens: int, num_reusable: int = 0) -> bool:
        """Return whether ``allocate`` can give a sequence blocks for so many tokens.

        Args:
            num_reusable: how many of them ``reuse_prefix`` will take from the cache first.
        """
        num_blocks, num_reused = -(-num_tokens // self.block_size), num_reusable // self.block_size
        counts, reused = [], []
        for group, pool, table in zip(self.groups, self._pools, blocks.tables, strict=True):
            counts.append(num_blocks - max(len(table), num_reused))
            # A cached block that no sequence uses counts as available until it is reused.
            first = self._first_seen(group, num_reusable)
            found = [pool.find(content) for content in blocks.hashes[first:num_reused]]
            reused.append({block for block in found if block is not None and pool.is_unused(block)})
        if self._can_take(counts, reused):
            return True
        if len(self._pools) == 1 or not any(group.extent_blocks for group in self.groups):
            return False
        # One group may keep the memory that another lacks.
        for pool, wanted in zip(self._pools, reused, strict=True):
            pool.release_memory(lambda: False, wanted)
        return self._can_take(counts, reused)

    def reuse_prefix(self, blocks: SequenceBlocks, num_tokens: int) -> None:
        """Begin a sequence with cached blocks for the tokens that ``num_reusable`` returned."""
        count = num_tokens // self.block_size
        for group, pool, table in zip(self.groups, self._pools, blocks.tables, strict=True):
            first = self._first_seen(group, num_tokens)
            table.extend([OUT_OF_WINDOW] * first)
            for content in blocks.hashes[first:count]:
                block = pool.find(content)
                if block is None:
                    raise KeyError("a cached block of the prefix was evicted")
                pool.use(block)
                table.append(block)
        blocks.num_cached_blocks = count
        if self._snapshots is not None and count:
            blocks.resumes = self._snapshots.resume(blocks.hashes[count - 1])

    def chunk_end(self, first: int, last: int, num_tokens: int) -> int:
        """Return the best end of a step over the tokens ``first`` to at most ``last`` (exclusive).

        It is the end of a full block, before the last token, if a snapshot is worthwhile there.

        Args:
            num_tokens: length of the sequence.
        """
        end = min(last, num_tokens - 1) // self.block_size * self.block_size
        return end if self._snapshots is not None and end - first >= MIN_SNAPSHOT_TOKENS else last

    def plan_snapshot(self, blocks: SequenceBlocks, token_ids: Sequence[int], first: int, last: int) -> int | None:
        """Return the slot where a step over the tokens ``first`` to ``last`` (exclusive) copies its states, if any."""
        if self._snapshots is None or last % self.block_size:
            return None
        planned = blocks.snapshots.get(last)
        if planned is None:
            content = self._hashes(blocks, token_ids, last // self.block_size)[-1]
            slot = None if self._snapshots.has(content) else self._snapshots.take()
            if slot is None:
                return None
            planned = blocks.snapshots[last] = PlannedSnapshot(slot, last - first == 1)
        return planned.slot

    def mark_pending(self, blocks: SequenceBlocks) -> None:
        """Mark the blocks of a prompt as about to be filled, so that other sequences may wait for them."""
        self._pending.update(blocks.hashes[blocks.num_cached_blocks :])
        blocks.num_pending = len(blocks.hashes)

    def allocate(self, blocks: SequenceBlocks, num_tokens: int) -> None:
        """Give a sequence blocks for so many tokens; ``can_allocate`` must have returned True."""
        counts = [-(-num_tokens // self.block_size) - len(table) for table in blocks.tables]
        for index, (pool, table, missing) in enumerate(zip(self._pools, blocks.tables, counts, strict=True)):
            if missing > 0:
                after = table[-1] if table and table[-1] != OUT_OF_WINDOW else None
                self._allowance.set_aside_bytes = self._needed_bytes(index + 1, counts)
                table.extend(pool.take(after, missing))
        self._allowance.set_aside_bytes = 0

    def recycle(self, blocks: SequenceBlocks, first: int, num_tokens: int, spare_tokens: int) -> None:
        """Move blocks before a window to the end of a sequence's tables, if groups with windows alone lack blocks.

        For a pass, whose steps write and read a layer in their order. Content of these blocks can't be found later.

        Args:
            first: the first token of the step that writes to them.
            num_tokens: of the sequence after that step.
            spare_tokens: for so many more tokens blocks were to stay available.
        """
        size, lacking = self.block_size, list[tuple[BlockGroup, BlockPool, list[int]]]()
        for group, pool, table in zip(self.groups, self._pools, blocks.tables, strict=True):
            if pool.bytes_to_take(-(-(num_tokens + spare_tokens) // size) - len(table)) is not None:
                continue
            if group.window is None:
                return
            lacking.append((group, pool, table))
        for group, pool, table in lacking:
            missing = -(-num_tokens // size) - len(table)
            start = next((index for index, block in enumerate(table) if block != OUT_OF_WINDOW), len(table))
            for index in range(start, min(start + missing, self._first_seen(group, first))):
                if not pool.make_own(table[index]):
                    break
                table.append(table[index])
                table[index] = OUT_OF_WINDOW

    def cache_full_blocks(self, blocks: SequenceBlocks, token_ids: Sequence[int], num_cached: int) -> None:
        """Make full blocks findable after a step, and release the blocks before a window."""
        num_full = num_cached // self.block_size
        if num_full == blocks.num_cached_blocks and not self._has_windows:
            if self._snapshots is not None:
                self._keep_snapshot(blocks, num_cached)
            return
        hashes = self._hashes(blocks, token_ids, num_full)
        for group, pool, table in zip(self.groups, self._pools, blocks.tables, strict=True):
            for index in range(blocks.num_cached_blocks, len(hashes)):
                if table[index] != OUT_OF_WINDOW:
                    pool.name(table[index], hashes[index], blocks.owners)
            self._release_before(pool, table, self._first_seen(group, num_cached))
        self._clear_pending(blocks, num_full)
        blocks.num_cached_blocks = max(blocks.num_cached_blocks, num_full)
        self._keep_snapshot(blocks, num_cached)

    def free(self, blocks: SequenceBlocks) -> None:
        """Release all blocks of a sequence. Their content stays findable until the blocks are needed."""
        self._clear_pending(blocks, blocks.num_pending)
        self._forget_snapshots(blocks)
        for pool, table in zip(self._pools, blocks.tables, strict=True):
            pool.release([block for block in table if block != OUT_OF_WINDOW])
            table.clear()
        blocks.num_cached_blocks = blocks.num_pending = 0

    def discard(self, owner: str) -> None:
        """Free the kept blocks of weights that were unloaded, since no sequence can reuse them.

        Snapshots of states stay until their slots are needed.
        """
        for pool in self._pools:
            pool.discard(owner)

    def forget_prefixes(self) -> None:
        """Let no sequence reuse what was computed before, but for snapshots that one is about to continue from."""
        for pool in self._pools:
            pool.forget_all()
        if self._snapshots is not None:
            self._snapshots.forget_all()

    def release_memory(self, taken_bytes: int, kept_bytes: int) -> None:
        """Release memory of unused blocks.

        Args:
            taken_bytes: free blocks lose memory until all blocks take no more than this.
            kept_bytes: blocks kept for their content lose memory until all blocks take no more than this.
        """
        allowance = self._allowance
        for pool in self._pools:
            pool.release_memory(lambda: allowance.taken_bytes <= taken_bytes, spares_kept=True)
        for pool in self._pools:
            pool.release_memory(lambda: allowance.taken_bytes <= max(taken_bytes, kept_bytes))

    def check_integrity(self, sequences: Iterable[SequenceBlocks]) -> None:
        """Raise AssertionError unless every block is accounted for by these sequences."""
        sequences = list(sequences)
        tables = [blocks.tables for blocks in sequences]
        for index, pool in enumerate(self._pools):
            pool.check_integrity([[block for block in table[index] if block != OUT_OF_WINDOW] for table in tables])
        if not tables and self._pending:
            raise AssertionError("blocks are pending without a sequence that fills them")
        if self._snapshots is not None:
            taken = [planned.slot for blocks in sequences for planned in blocks.snapshots.values()]
            read = [blocks.resumes for blocks in sequences if blocks.resumes is not None]
            self._snapshots.check_integrity(taken, read)

    def _can_take(self, counts: Sequence[int], reused: Sequence[AbstractSet[int]]) -> bool:
        """Return whether each group can take so many more blocks without evicting those of ``reused``."""
        wanted = needed = 0
        for pool, count, kept in zip(self._pools, counts, reused, strict=True):
            nbytes = pool.bytes_to_take(count, len(kept))
            if nbytes is None:
                return False
            wanted, needed = wanted + nbytes[0], needed + nbytes[1]
        return self._allowance.make_spare(wanted, needed)

    def _needed_bytes(self, first: int, counts: Sequence[int]) -> int:
        """Return the bytes that groups from ``first`` on need for so many more blocks each."""
        missing = [pool.bytes_to_take(count) for pool, count in zip(self._pools[first:], counts[first:], strict=True)]
        return sum(nbytes[1] for nbytes in missing if nbytes is not None)

    def _first_seen(self, group: BlockGroup, num_tokens: int) -> int:
        """Return the first block that the token after so many tokens sees."""
        if group.window is None:
            return 0
        return max(0, oldest_seen(num_tokens, group.window, group.is_chunked)) // self.block_size

    def _hashes(self, blocks: SequenceBlocks, token_ids: Sequence[int], count: int) -> list[bytes]:
        """Return the hashes of the first blocks; each includes the hash of the block before."""
        size = self.block_size
        if not self._shares_prefixes:
            return []
        for index in range(len(blocks.hashes), count):
            before = blocks.hashes[-1] if blocks.hashes else blocks.salt
            tokens = np.asarray(token_ids[index * size : (index + 1) * size], dtype=np.int64)
            blocks.hashes.append(blake2b(before + tokens.tobytes(), digest_size=DIGEST_BYTES).digest())
        return blocks.hashes[:count]

    def _longest_prefix(self, hashes: Sequence[bytes]) -> int:
        """Return the largest number of cached blocks that a sequence with these hashes can begin with."""
        most = len(hashes)
        windows: list[tuple[BlockGroup, list[int]]] = []
        for group, pool in zip(self.groups, self._pools, strict=True):
            if group.window is None:
                most = next((index for index in range(most) if pool.find(hashes[index]) is None), most)
            else:
                lengths = [0]  # cached blocks up to each index without a gap
                for content in hashes[:most]:
                    lengths.append(0 if pool.find(content) is None else lengths[-1] + 1)
                windows.append((group, lengths))

        def can_continue(count: int) -> bool:
            last = count * self.block_size
            if self._snapshots is not None and not self._snapshots.has(hashes[count - 1]):
                return False
            return all(lengths[count] >= count - self._first_seen(group, last) for group, lengths in windows)

        return next((count for count in range(most, 0, -1) if can_continue(count)), 0)

    def _clear_pending(self, blocks: SequenceBlocks, count: int) -> None:
        """Unmark pending blocks that are filled, or never will be."""
        for content in blocks.hashes[blocks.num_cached_blocks : min(count, blocks.num_pending)]:
            self._pending[content] -= 1
            if not self._pending[content]:
                del self._pending[content]

    def _keep_snapshot(self, blocks: SequenceBlocks, num_cached: int) -> None:
        """Free the snapshot that the step continued from, and make the one that it wrote findable."""
        if self._snapshots is None:
            return
        if blocks.resumes is not None:
            self._snapshots.done(blocks.resumes)
            blocks.resumes = None
        if num_cached in blocks.snapshots:
            planned = blocks.snapshots.pop(num_cached)
            content = blocks.hashes[num_cached // self.block_size - 1]
            self._snapshots.keep(content, planned.slot)
            if blocks.last_snapshot is not None:
                self._snapshots.drop(blocks.last_snapshot)
            blocks.last_snapshot = content if planned.is_decode else None

    def _forget_snapshots(self, blocks: SequenceBlocks) -> None:
        if self._snapshots is not None and blocks.resumes is not None:
            self._snapshots.done(blocks.resumes)
        if self._snapshots is not None:
            for planned in blocks.snapshots.values():
                self._snapshots.give_back(planned.slot)
        blocks.snapshots.clear()
        blocks.resumes = blocks.last_snapshot = None

    @staticmethod
    def _release_before(pool: BlockPool, table: list[int], first: int) -> None:
        """Release the blocks of a table before an index."""
        released = []
        for index in range(first - 1, -1, -1):
            if table[index] == OUT_OF_WINDOW:
                break
            released.append(table[index])
            table[index] = OUT_OF_WINDOW
        if released:
            pool.release(released[::-1])
