"""Who owns which blocks of the KV cache, and which prompt begins with what is in it already. Torch-free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b

import numpy as np

from server.model.windows import oldest_seen

from .block_pool import BlockPool
from .extents import Allowance, Extents
from .snapshots import SnapshotPool

GONE = -1  # in a table: a block that lies before the window
DIGEST_BYTES = 16
LEAST_TOKENS = 64  # that are worth a step which ends with a full block, for the sake of a snapshot


@dataclass(frozen=True)
class BlockGroup:
    """The blocks of the layers that see equally far back."""

    num_blocks: int
    window: int | None = None  # tokens that a query sees, its own included; None is all
    is_chunked: bool = False  # it sees its own chunk of so many tokens, instead of the last ones
    extent_blocks: int = 0  # neighbours that get memory together; 0 where all have it
    block_bytes: int = 0


@dataclass(eq=False)
class SequenceBlocks:
    """What one sequence has of the cache."""

    tables: list[list[int]]  # by group; entry i is where tokens from i * block_size on lie, or GONE
    hashes: list[bytes] = field(default_factory=list)  # of its full blocks, each with all that is before it
    num_named: int = 0  # full blocks that others can find
    num_promised: int = 0  # blocks of its prompt that it is expected to fill
    resumes: int | None = None  # the snapshot that its next step goes on from
    snapshot: int | None = None  # where its next step leaves one
    generates: bool = False  # whether that step is one of decoding
    newest: bytes | None = None  # the content of its last snapshot while decoding, which the next one replaces


class BlockManager:
    """Hands out blocks of ``block_size`` tokens to sequences, in every group.

    A full block is known by the hash of its tokens and of all tokens before them, so that a sequence that begins as
    another did uses the other's blocks, also long after it ended. Groups with a window give up blocks that no later
    token sees, and can be continued where the blocks are there that the next token sees; of a group with chunks, that
    is none at the end of a chunk.

    Args:
        shares_prefixes: whether a sequence can begin with what another left; else nothing is used again.
        snapshots: places for copies of states, if blocks are not all that a sequence needs to go on.
        allowance: bytes that blocks with extents may take; without, all that they need.
        release: is told each group, first block and number of blocks whose memory is given back.
    """

    def __init__(
        self,
        groups: Sequence[BlockGroup],
        block_size: int,
        shares_prefixes: bool = True,
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
        self._promised: Counter[bytes] = Counter()  # blocks that running sequences are about to fill

    @property
    def usage(self) -> float:
        """Part of the fullest group's blocks that sequences use, 0 to 1."""
        return max(pool.num_used / pool.num_blocks for pool in self._pools)

    @property
    def used_bytes(self) -> int:
        """Bytes of the blocks that sequences use; of extents that are used in part, the used part."""
        return sum(pool.num_used * group.block_bytes for pool, group in zip(self._pools, self.groups, strict=True))

    def new_blocks(self) -> SequenceBlocks:
        return SequenceBlocks([[] for _ in self.groups])

    def num_reusable(self, blocks: SequenceBlocks, token_ids: Sequence[int]) -> int:
        """How many of a sequence's first tokens are in the cache; one at least is always left to compute."""
        num_blocks = (len(token_ids) - 1) // self.block_size
        hashes = self._hashes(blocks, token_ids, num_blocks)
        return self.block_size * self._longest_prefix(hashes)

    def is_promised(self, blocks: SequenceBlocks, num_reusable: int) -> bool:
        """Whether a running sequence is about to fill the block that follows the reusable ones."""
        index = num_reusable // self.block_size
        return index < len(blocks.hashes) and blocks.hashes[index] in self._promised

    def can_hold(self, blocks: SequenceBlocks, num_tokens: int, num_reusable: int = 0) -> bool:
        """Whether a sequence can have room for so many tokens.

        Args:
            num_reusable: of them, how many ``adopt`` will take from the cache first.
        """
        num_blocks, num_reused = -(-num_tokens // self.block_size), num_reusable // self.block_size
        counts, reused = [], []
        for group, pool, table in zip(self.groups, self._pools, blocks.tables, strict=True):
            counts.append(num_blocks - max(len(table), num_reused))
            # Reused blocks that nobody uses are available until they are adopted.
            first = self._first_seen(group, num_reusable)
            found = [pool.find(content) for content in blocks.hashes[first:num_reused]]
            reused.append({block for block in found if block is not None and pool.is_unused(block)})
        if self._can_take(counts, reused):
            return True
        if len(self._pools) == 1 or not any(group.extent_blocks for group in self.groups):
            return False
        # What one group keeps may be what another lacks.
        for pool, wanted in zip(self._pools, reused, strict=True):
            pool.give_memory_back(lambda: False, wanted)
        return self._can_take(counts, reused)

    def adopt(self, blocks: SequenceBlocks, num_tokens: int) -> None:
        """Begin a sequence with tokens that are in the cache, as many as ``num_reusable`` said."""
        count = num_tokens // self.block_size
        for group, pool, table in zip(self.groups, self._pools, blocks.tables, strict=True):
            first = self._first_seen(group, num_tokens)
            table.extend([GONE] * first)
            for content in blocks.hashes[first:count]:
                block = pool.find(content)
                if block is None:
                    raise KeyError("a block that was in the cache is gone")
                pool.use(block)
                table.append(block)
        blocks.num_named = count
        if self._snapshots is not None and count:
            blocks.resumes = self._snapshots.resume(blocks.hashes[count - 1])

    def cut(self, first: int, last: int, num_tokens: int) -> int:
        """Where a step from token ``first`` of a sequence that could go to ``last`` (exclusive) had better end.

        That is with a full block, before the last token, where a snapshot is worth it.

        Args:
            num_tokens: of the sequence.
        """
        end = min(last, num_tokens - 1) // self.block_size * self.block_size
        return end if self._snapshots is not None and end - first >= LEAST_TOKENS else last

    def plan_snapshot(self, blocks: SequenceBlocks, token_ids: Sequence[int], first: int, last: int) -> int | None:
        """The place where a step over the tokens ``first`` to ``last`` (exclusive) leaves a copy of states, if any."""
        if self._snapshots is None or last % self.block_size:
            return None
        content = self._hashes(blocks, token_ids, last // self.block_size)[-1]
        if blocks.snapshot is None and not self._snapshots.has(content):
            blocks.snapshot, blocks.generates = self._snapshots.take(), last - first == 1
        return blocks.snapshot

    def promise(self, blocks: SequenceBlocks) -> None:
        """Tell that a sequence is about to fill the blocks of its prompt, so that others may wait for them."""
        self._promised.update(blocks.hashes[blocks.num_named :])
        blocks.num_promised = len(blocks.hashes)

    def hold(self, blocks: SequenceBlocks, num_tokens: int) -> None:
        """Give a sequence room for so many tokens; ``can_hold`` must have said yes."""
        counts = [-(-num_tokens // self.block_size) - len(table) for table in blocks.tables]
        for index, (pool, table, missing) in enumerate(zip(self._pools, blocks.tables, counts, strict=True)):
            if missing > 0:
                after = table[-1] if table and table[-1] != GONE else None
                self._allowance.set_aside_bytes = self._needed_bytes(index + 1, counts)
                table.extend(pool.take(after, missing))
        self._allowance.set_aside_bytes = 0

    def keep(self, blocks: SequenceBlocks, token_ids: Sequence[int], num_cached: int) -> None:
        """After a step: full blocks can be found from now on, and those before a window are given up."""
        num_full = num_cached // self.block_size
        hashes = self._hashes(blocks, token_ids, num_full)
        for group, pool, table in zip(self.groups, self._pools, blocks.tables, strict=True):
            for index in range(blocks.num_named, len(hashes)):
                if table[index] != GONE:
                    pool.name(table[index], hashes[index])
            self._give_up(pool, table, self._first_seen(group, num_cached))
        self._redeem(blocks, num_full)
        blocks.num_named = max(blocks.num_named, num_full)
        self._keep_snapshot(blocks)

    def free(self, blocks: SequenceBlocks) -> None:
        """Take back all blocks of a sequence; what is in them can be found until they are needed."""
        self._redeem(blocks, blocks.num_promised)
        self._forget_snapshots(blocks)
        for pool, table in zip(self._pools, blocks.tables, strict=True):
            pool.release([block for block in table if block != GONE])
            table.clear()
        blocks.num_named = blocks.num_promised = 0

    def give_memory_back(self, taken_bytes: int, kept_bytes: int) -> None:
        """Give back memory that nobody uses.

        Args:
            taken_bytes: that blocks may go on to take.
            kept_bytes: the same where they are kept for their content.
        """
        allowance = self._allowance
        for pool in self._pools:
            pool.give_memory_back(lambda: allowance.taken_bytes <= taken_bytes, spares_kept=True)
        for pool in self._pools:
            pool.give_memory_back(lambda: allowance.taken_bytes <= max(taken_bytes, kept_bytes))

    def check_integrity(self, sequences: Iterable[SequenceBlocks]) -> None:
        """Raise AssertionError unless every block is accounted for by these sequences."""
        sequences = list(sequences)
        tables = [blocks.tables for blocks in sequences]
        for index, pool in enumerate(self._pools):
            pool.check_integrity([[block for block in table[index] if block != GONE] for table in tables])
        if not tables and self._promised:
            raise AssertionError("blocks are promised by nobody")
        if self._snapshots is not None:
            taken, read = ([getattr(blocks, name) for blocks in sequences] for name in ("snapshot", "resumes"))
            self._snapshots.check_integrity(
                [place for place in taken if place is not None], [place for place in read if place is not None]
            )

    def _can_take(self, counts: Sequence[int], reused: Sequence[AbstractSet[int]]) -> bool:
        """Tell whether each group can have as many more blocks as asked without giving up those of ``reused``."""
        wanted = needed = 0
        for pool, count, kept in zip(self._pools, counts, reused, strict=True):
            nbytes = pool.bytes_to_take(count, len(kept))
            if nbytes is None:
                return False
            wanted, needed = wanted + nbytes[0], needed + nbytes[1]
        return self._allowance.make_spare(wanted, needed)

    def _needed_bytes(self, first: int, counts: Sequence[int]) -> int:
        """Memory that groups from the first on need for so many more blocks each."""
        missing = [pool.bytes_to_take(count) for pool, count in zip(self._pools[first:], counts[first:], strict=True)]
        return sum(nbytes[1] for nbytes in missing if nbytes is not None)

    def _first_seen(self, group: BlockGroup, num_tokens: int) -> int:
        """The first block that the token after so many tokens sees."""
        if group.window is None:
            return 0
        return max(0, oldest_seen(num_tokens, group.window, group.is_chunked)) // self.block_size

    def _hashes(self, blocks: SequenceBlocks, token_ids: Sequence[int], count: int) -> list[bytes]:
        """Hashes of the first blocks, each of which has that of the one before in it."""
        size = self.block_size
        if not self._shares_prefixes:
            return []
        for index in range(len(blocks.hashes), count):
            before = blocks.hashes[-1] if blocks.hashes else b""
            tokens = np.asarray(token_ids[index * size : (index + 1) * size], dtype=np.int64)
            blocks.hashes.append(blake2b(before + tokens.tobytes(), digest_size=DIGEST_BYTES).digest())
        return blocks.hashes[:count]

    def _longest_prefix(self, hashes: Sequence[bytes]) -> int:
        """The most blocks a sequence of these can begin with."""
        most = len(hashes)
        windows: list[tuple[BlockGroup, list[int]]] = []
        for group, pool in zip(self.groups, self._pools, strict=True):
            if group.window is None:
                most = next((index for index in range(most) if pool.find(hashes[index]) is None), most)
            else:
                lengths = [0]  # how many blocks up to here are there without a gap
                for content in hashes[:most]:
                    lengths.append(0 if pool.find(content) is None else lengths[-1] + 1)
                windows.append((group, lengths))

        def can_continue(count: int) -> bool:
            last = count * self.block_size
            if self._snapshots is not None and not self._snapshots.has(hashes[count - 1]):
                return False
            return all(lengths[count] >= count - self._first_seen(group, last) for group, lengths in windows)

        return next((count for count in range(most, 0, -1) if can_continue(count)), 0)

    def _redeem(self, blocks: SequenceBlocks, count: int) -> None:
        """Take back promises of blocks that are filled, or never will be."""
        for content in blocks.hashes[blocks.num_named : min(count, blocks.num_promised)]:
            self._promised[content] -= 1
            if not self._promised[content]:
                del self._promised[content]

    def _keep_snapshot(self, blocks: SequenceBlocks) -> None:
        """The step is done: what it went on from is free, and what it left can be found."""
        if self._snapshots is None:
            return
        if blocks.resumes is not None:
            self._snapshots.done(blocks.resumes)
            blocks.resumes = None
        if blocks.snapshot is not None:
            content = blocks.hashes[blocks.num_named - 1]
            self._snapshots.keep(content, blocks.snapshot)
            blocks.snapshot = None
            if blocks.newest is not None:
                self._snapshots.drop(blocks.newest)
            blocks.newest = content if blocks.generates else None

    def _forget_snapshots(self, blocks: SequenceBlocks) -> None:
        if self._snapshots is not None and blocks.resumes is not None:
            self._snapshots.done(blocks.resumes)
        if self._snapshots is not None and blocks.snapshot is not None:
            self._snapshots.give_back(blocks.snapshot)
        blocks.resumes = blocks.snapshot = blocks.newest = None

    @staticmethod
    def _give_up(pool: BlockPool, table: list[int], first: int) -> None:
        gone = []
        for index in range(first - 1, -1, -1):
            if table[index] == GONE:
                break
            gone.append(table[index])
            table[index] = GONE
        if gone:
            pool.release(gone[::-1])
