"""Decides the size of the KV cache, and divides it among groups of layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from server.byte_sizes import format_bytes
from server.engine.kv.block_manager import BlockGroup
from server.model.attention.kv_cache import KVGroup, extent_blocks
from server.settings import BATCHED_TOKENS, ServeSettings, SettingsError

BLOCK_SIZE = 16  # tokens
KV_SHARE = 8  # the cache gets at most 1/8 of a device's free memory
ELASTIC_SHARE = 2  # and at most 1/2 of the host's, which blocks use only while sequences need them
FIRST_TOKENS = 512  # tokens that the cache has memory for before the first request
STATE_SHARE = 2  # recurrent states get at most 1/2 of the budget


@dataclass(frozen=True)
class KVPlan:
    """Number of blocks of every group, maximum sequence length, and number of running sequences."""

    groups: Sequence[KVGroup]
    num_blocks: Sequence[int]  # per group
    max_model_len: int
    num_slots: int  # sequences that may run at once
    state_bytes: int = 0  # recurrent state of one sequence
    state_rows: int = 1  # such states of a running sequence
    shares_prefixes: bool = True
    is_elastic: bool = False  # blocks allocate memory at first use, and give it back
    notes: tuple[str, ...] = ()  # limits that the memory sets, for the log

    @property
    def num_snapshots(self) -> int:
        """Copies of states for sequences with a common prefix: as many as running sequences."""
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
        """Bytes of states, which are allocated once."""
        return (self.num_slots * self.state_rows + self.num_snapshots) * self.state_bytes

    @property
    def extent_bytes(self) -> int:
        """Bytes of one extent of blocks in each group."""
        return first_bytes(self.groups, 0)

    @property
    def first_bytes(self) -> int:
        """Bytes of the smallest useful cache: the first blocks of one sequence."""
        return min(self.nbytes, first_bytes(self.groups, self.max_model_len) + self.fixed_bytes)

    @property
    def num_tokens(self) -> int:
        """Tokens that the cache holds, of all sequences together."""
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
    """Return the number of blocks in an extent; at most those of the group."""
    return max(1, min(extent_blocks(group, BLOCK_SIZE), num_blocks))


def first_bytes(groups: Sequence[KVGroup], longest: int) -> int:
    """Return the initial bytes of a sequence of up to ``longest`` tokens: at least one extent in each group."""
    token_bytes, extents = sum(group.token_bytes for group in groups), 0
    for group in groups:
        extents += extent_blocks(group, BLOCK_SIZE) * BLOCK_SIZE * group.token_bytes
    return max(min(FIRST_TOKENS, longest) * token_bytes, extents)


def plan_kv_cache(
    settings: ServeSettings,
    groups: Sequence[KVGroup],
    longest: int,
    *,
    free_bytes: int,
    state_bytes: int = 0,
    state_rows: int = 1,
    shares_prefixes: bool = True,
    share: int = KV_SHARE,
    most_bytes: int = 0,
) -> KVPlan:
    """Decide the size of the KV cache. For an elastic cache, this is the largest size that it may grow to.

    The states of recurrent layers come first, for as many sequences as may run or as half of the budget holds.

    Groups with full attention get blocks for as many tokens as fit. A group with a window gets as many blocks, but no
    more than all running sequences need: a window and the tokens of a step each.

    Args:
        longest: the model's context, in tokens.
        free_bytes: free memory; without ``--kv-cache-memory``, the cache gets one part in ``share``.
        most_bytes: bytes of the free memory that the cache may use if one sequence of the maximum length needs them;
            more than 0 makes the cache elastic.
        state_bytes: recurrent state of one sequence, beside its blocks.
        state_rows: such states of a running sequence: those before and after a step, if they are kept apart.
        shares_prefixes: whether copies of states are kept for sequences with a common prefix.

    Raises:
        SettingsError: the cache can't hold one sequence of the length that was asked for.
    """
    if settings.max_model_len is not None and settings.max_model_len > longest:
        raise SettingsError(f"--max-model-len {settings.max_model_len}: the model's context is {longest} tokens")
    longest = settings.max_model_len or longest
    blocks_of_one, num_slots = -(-longest // BLOCK_SIZE), settings.max_running_requests
    most = blocks_of_one * num_slots
    limits = [_most_blocks(group, settings) or most for group in groups]
    is_elastic, notes = most_bytes > 0, []

    def plan(num_blocks: int) -> KVPlan:
        counts = [min(num_blocks, limit) for limit in limits]
        if is_elastic:  # round up to complete extents
            sizes = [extent_size(group, count) for group, count in zip(groups, counts, strict=True)]
            counts = [-(-count // size) * size for count, size in zip(counts, sizes, strict=True)]
        return KVPlan(
            groups,
            counts,
            longest,
            num_slots=num_slots,
            state_bytes=state_bytes,
            state_rows=state_rows,
            shares_prefixes=shares_prefixes,
            is_elastic=is_elastic,
        )

    of_longest = min(plan(blocks_of_one).nbytes, most_bytes)
    auto = max(0, min(plan(most).nbytes, max(free_bytes // share, of_longest)))
    budget = settings.kv_cache_memory.resolve(plan(most).nbytes, auto)
    if plan(most).nbytes > budget and plan(0).nbytes * STATE_SHARE > budget:
        num_slots = max(1, budget // STATE_SHARE // ((state_rows + shares_prefixes) * state_bytes))
        notes.append(f"running requests limited to {num_slots} by recurrent-state memory; raise --kv-cache-memory")
    num_blocks = _largest(lambda count: plan(count).nbytes <= budget, most)
    if num_blocks < blocks_of_one:
        if settings.max_model_len is not None or num_blocks == 0:
            need = format_bytes(plan(max(1, blocks_of_one)).nbytes)
            fits = f", or set --max-model-len to {num_blocks * BLOCK_SIZE} at most" if num_blocks else ""
            raise SettingsError(
                f"--kv-cache-memory {settings.kv_cache_memory}: {longest} tokens need {need}; raise it{fits}"
            )
        longest = num_blocks * BLOCK_SIZE
        notes.append(f"context length limited to {longest} tokens by KV cache memory; raise --kv-cache-memory")
    return replace(plan(num_blocks), notes=tuple(notes))


def _most_blocks(group: KVGroup, settings: ServeSettings) -> int | None:
    """Return the blocks that all running sequences need at most; None without a window."""
    if group.window is None:
        return None
    of_one = -(-(group.window + (settings.max_batched_tokens or BATCHED_TOKENS)) // BLOCK_SIZE) + 1
    return of_one * settings.max_running_requests


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest number up to ``most`` that fits, if every smaller one fits, too."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
