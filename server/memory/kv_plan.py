"""How the memory of the KV cache is shared out among groups of layers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.engine.block_manager import BlockGroup
from server.model.kv_cache import KVGroup, extent_blocks
from server.settings import ServeSettings, SettingsError, parse_budget

from .sizes import format_bytes

log = logging.getLogger(__name__)

BLOCK_SIZE = 16  # tokens
KV_SHARE = 8  # one part in so many of a device's free memory, at most
ELASTIC_SHARE = 2  # the same of the host's, which blocks take only while sequences need them
FIRST_TOKENS = 512  # for which there is memory before the first request
STATE_SHARE = 2  # of the budget, one part in so many for states, at most


@dataclass(frozen=True)
class KVPlan:
    """Blocks for every group, the longest sequence, and how many run at once."""

    groups: Sequence[KVGroup]
    num_blocks: Sequence[int]  # of each group
    max_model_len: int
    num_slots: int  # sequences that run at once
    state_bytes: int = 0  # of each of them, in recurrent layers
    shares_prefixes: bool = True
    is_elastic: bool = False  # blocks take memory when they are used first, and give it back

    @property
    def num_snapshots(self) -> int:
        """Copies of states, for sequences that begin alike: as many as sequences that run."""
        return self.num_slots if self.state_bytes and self.shares_prefixes else 0

    @property
    def num_states(self) -> int:
        return self.num_slots + self.num_snapshots

    @property
    def nbytes(self) -> int:
        blocks = sum(
            count * BLOCK_SIZE * group.token_bytes for count, group in zip(self.num_blocks, self.groups, strict=True)
        )
        return blocks + self.fixed_bytes

    @property
    def fixed_bytes(self) -> int:
        """Bytes of states, which do not come and go."""
        return self.num_states * self.state_bytes

    @property
    def extent_bytes(self) -> int:
        """Bytes of an extent of blocks in each group."""
        return first_bytes(self.groups, 0)

    @property
    def first_bytes(self) -> int:
        """The least that is of use: for one sequence of some length."""
        return min(self.nbytes, first_bytes(self.groups, self.max_model_len) + self.fixed_bytes)

    @property
    def num_tokens(self) -> int:
        """Of all sequences together."""
        return max(self.num_blocks) * BLOCK_SIZE

    @property
    def block_groups(self) -> list[BlockGroup]:
        pairs = zip(self.num_blocks, self.groups, strict=True)
        return [
            BlockGroup(
                count,
                group.window,
                group.is_chunked,
                extent_size(group, count) if self.is_elastic else 0,
                BLOCK_SIZE * group.token_bytes,
            )
            for count, group in pairs
        ]


def extent_size(group: KVGroup, num_blocks: int) -> int:
    """Blocks of an extent; all of a group that has fewer than an extent."""
    return max(1, min(extent_blocks(group, BLOCK_SIZE), num_blocks))


def first_bytes(groups: Sequence[KVGroup], longest: int) -> int:
    """Bytes of the blocks that a sequence of up to ``longest`` tokens begins with; an extent in each group at least."""
    token_bytes, extents = sum(group.token_bytes for group in groups), 0
    for group in groups:
        extents += extent_blocks(group, BLOCK_SIZE) * BLOCK_SIZE * group.token_bytes
    return max(min(FIRST_TOKENS, longest) * token_bytes, extents)


def plan_kv_cache(
    settings: ServeSettings,
    groups: Sequence[KVGroup],
    longest: int,
    free_bytes: int,
    state_bytes: int = 0,
    shares_prefixes: bool = True,
    share: int = KV_SHARE,
    most_bytes: int = 0,
) -> KVPlan:
    """Share out the budget: of an elastic cache, the most that it ever takes.

    The states of recurrent layers come first, of as many sequences as may run or as half of the budget holds.

    Groups that see everything get blocks for as many tokens as fit. One with a window gets as many, or what all
    running sequences need at most: a window and the tokens of a step each.

    Args:
        longest: the model's context, in tokens.
        free_bytes: of which a part is taken when no budget is given, one in ``share``.
        most_bytes: that is taken of them if one sequence of the longest needs it. A cache that has some is elastic.
        state_bytes: that each running sequence takes besides its blocks.
        shares_prefixes: whether copies of states are kept, for sequences that begin alike.

    Raises:
        SettingsError: the cache can't hold one sequence of the length that was asked for.
    """
    if settings.max_model_len is not None and settings.max_model_len > longest:
        raise SettingsError(f"--max-model-len {settings.max_model_len}: the model's context is {longest} tokens")
    longest = settings.max_model_len or longest
    blocks_of_one, num_slots = -(-longest // BLOCK_SIZE), settings.max_running_requests
    most = blocks_of_one * num_slots
    limits = [_most_blocks(group, settings) or most for group in groups]
    is_elastic = most_bytes > 0

    def plan(num_blocks: int) -> KVPlan:
        counts = [min(num_blocks, limit) for limit in limits]
        if is_elastic:  # whole extents
            sizes = [extent_size(group, count) for group, count in zip(groups, counts, strict=True)]
            counts = [-(-count // size) * size for count, size in zip(counts, sizes, strict=True)]
        return KVPlan(groups, counts, longest, num_slots, state_bytes, shares_prefixes, is_elastic)

    of_longest = min(plan(blocks_of_one).nbytes, most_bytes)
    auto = max(0, min(plan(most).nbytes, max(free_bytes // share, of_longest)))
    budget = parse_budget(settings.kv_cache_memory).resolve(plan(most).nbytes, auto)
    if plan(most).nbytes > budget and plan(0).nbytes * STATE_SHARE > budget:
        num_slots = max(1, budget // STATE_SHARE // ((2 if shares_prefixes else 1) * state_bytes))
        log.warning("states of %d requests fit, so no more run at once; see --kv-cache-memory", num_slots)
    num_blocks = _largest(lambda count: plan(count).nbytes <= budget, most)
    if num_blocks < blocks_of_one:
        if settings.max_model_len is not None or num_blocks == 0:
            need = format_bytes(plan(max(1, blocks_of_one)).nbytes)
            fits = f"; or give --max-model-len {num_blocks * BLOCK_SIZE} at most" if num_blocks else ""
            raise SettingsError(f"--kv-cache-memory {settings.kv_cache_memory}: {longest} tokens need {need}{fits}")
        longest = num_blocks * BLOCK_SIZE
        log.warning("the KV cache holds %d tokens, so longer prompts are refused; see --kv-cache-memory", longest)
    return plan(num_blocks)


def _most_blocks(group: KVGroup, settings: ServeSettings) -> int | None:
    """What all running sequences need at most; None without a window."""
    if group.window is None:
        return None
    of_one = -(-(group.window + settings.max_batched_tokens) // BLOCK_SIZE) + 1
    return of_one * settings.max_running_requests


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to ``most`` that fits, where all below it do."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
