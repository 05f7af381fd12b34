"""Memory that experts and KV cache share, where compute runs in the host's memory.

Experts have all of it but what blocks of sequences take. Before blocks get more, experts have given it up.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from expert_store import BudgetError, ExpertStore
from server.engine.block_manager import BlockManager
from server.engine.extents import Allowance

from .plan import GROWTH_BYTES, MemoryPlan
from .sizes import format_bytes
from .step import step_bytes
from .usage import Action, Adjustments, Cause

log = logging.getLogger(__name__)

OVERCOMMIT_SHARE = 2  # one part in so many of what is set aside may be given to experts
CHUNKS = 64  # of the shared memory; none is moved in smaller parts
KEPT_SHARE = 8  # one part in so many may hold beginnings of prompts that nobody uses now
HOLD_SECONDS = 10.0  # that blocks stay unneeded before experts get their memory
TICK_SECONDS = 1.0  # between looks at what is unneeded
MOST_WAIT_SECONDS = 1.0  # for reads that are on their way into slots which are to go


class Shares:
    """Moves memory between experts and KV cache, and keeps a reserve from both.

    ``grow``, ``before_step`` and ``reclaim`` are called by the engine's thread, ``set_reserve`` by any.

    Args:
        store: whose host tier has the size that was planned.
    """

    def __init__(self, store: ExpertStore, plan: MemoryPlan, clock: Callable[[], float] = time.monotonic):
        self.adjustments = Adjustments()
        self._store, self._plan, self._clock = store, plan, clock
        self._step_bytes = plan.first_step_bytes
        self._reserve = 0
        self._was_shrink: bool | None = None
        self._lock = threading.RLock()
        self._host_bytes = plan.host_bytes
        self._most_experts = plan.host_bytes if plan.are_experts_pinned else plan.needs.catalog.total_bytes
        self._least_experts = plan.host_bytes if plan.are_experts_pinned else plan.least_host_bytes
        self._most_kv = plan.kv.nbytes - plan.kv.fixed_bytes
        self._first_kv = self._most_kv if plan.is_kv_pinned else plan.kv.first_bytes - plan.kv.fixed_bytes
        self._chunk = max(plan.kv.extent_bytes, self._shared_bytes() // CHUNKS)
        self._reclaimed_at = clock()
        self._window_began, self._peak, self._peak_before = clock(), 0, 0
        self.allowance = Allowance(self._first_kv, grow=self.grow)
        self._set_kept()
        with self._lock:
            self._give_rest_to_kv()

    @property
    def step_bytes(self) -> int:
        """Bytes set aside for a step."""
        return self._step_bytes

    @property
    def expert_budget(self) -> int:
        return self._host_bytes

    @property
    def unfilled_bytes(self) -> int:
        """Bytes that experts and blocks may take without asking again."""
        return max(0, self._host_bytes - self._store.host_resident_bytes) + max(
            0, self.allowance.limit_bytes - self.allowance.taken_bytes
        )

    @property
    def reserve_bytes(self) -> int:
        """Bytes that ``set_reserve`` keeps from both; less than 0 where it overcommits."""
        return self._reserve

    @property
    def can_shrink(self) -> bool:
        """Whether experts have more than the least."""
        return self._host_bytes > self._least()

    def grow(self, nbytes: int) -> None:
        """Let blocks take so many more bytes, or as many as experts can give up."""
        if self._plan.is_kv_pinned:
            return
        with self._lock:
            allowance = self.allowance
            # The longest sequence has to go on, whatever the reserve.
            most = min(
                self._most_kv, max(self._shared_bytes(largest_step=True) - self._least(), self._bytes_of_longest())
            )
            wanted = min(most, allowance.limit_bytes + max(nbytes, self._chunk))
            if wanted <= allowance.limit_bytes:
                return
            self._resize_experts(self._shared_bytes() - wanted)
            deadline = self._clock() + MOST_WAIT_SECONDS
            while self._store.host_slot_bytes > self._host_bytes and self._clock() < deadline:
                time.sleep(0.001)
            held = self._store.host_slot_bytes
            spare = self._shared_bytes() - held if held > self._least() else wanted
            allowance.limit_bytes = max(allowance.limit_bytes, min(wanted, spare))

    def before_step(self, num_tokens: int, num_logits: int) -> None:
        """Set memory aside for a step, if it is larger than all before."""
        shape, plan = self._plan.needs.step, self._plan
        if step_bytes(shape, num_tokens, num_logits) <= self._step_bytes:
            return
        nbytes = step_bytes(shape, 1 << (num_tokens - 1).bit_length(), num_logits)
        with self._lock:
            self._step_bytes = max(self._step_bytes, min(nbytes, plan.step_bytes))
            self._rebalance()

    def reclaim(self, blocks: BlockManager) -> bool:
        """Give memory that blocks have not needed lately to the experts; False if a later call would give no more."""
        now, allowance = self._clock(), self.allowance
        self._peak = max(self._peak, blocks.used_bytes)
        if now - self._reclaimed_at < TICK_SECONDS:
            return True
        self._reclaimed_at = now
        if now - self._window_began >= HOLD_SECONDS:
            self._window_began, self._peak_before, self._peak = now, self._peak, blocks.used_bytes
        needed = max(self._peak, self._peak_before)
        with self._lock:
            kept = allowance.kept_bytes if self._reserve <= 0 or self.can_shrink else 0
            if allowance.taken_bytes > needed + self._chunk:
                blocks.give_memory_back(needed + self._chunk, kept)
            limit = max(self._first_kv, self._beyond_all_experts(), max(allowance.taken_bytes, needed) + self._chunk)
            if not self._plan.is_kv_pinned and allowance.limit_bytes > limit + self._chunk:
                allowance.limit_bytes = limit
                self._rebalance()
        return needed > blocks.used_bytes or allowance.limit_bytes > limit + self._chunk

    def set_reserve(self, nbytes: int, cause: Cause, reason: str) -> None:
        """Keep so many bytes from both, for what was not planned; experts give them up, or get them back.

        Args:
            nbytes: less than 0 gives them what was set aside and is not taken, up to half of it.
            cause: for metrics.
            reason: for the log.
        """
        with self._lock:
            before, self._reserve = self._reserve, max(-self._most_overcommit(), nbytes)
            had = self._host_bytes
            self._rebalance()
            if self._host_bytes == had:
                return
            is_shrink, size = self._reserve > before, format_bytes(self._host_bytes)
            action: Action = "shrink" if is_shrink else "grow"
            self.adjustments.counts[action, cause] += 1
            self.adjustments.reason = reason
            level = logging.DEBUG if is_shrink == self._was_shrink else logging.INFO  # a line for each turn
            self._was_shrink = is_shrink
            log.log(level, "experts %s to %s: %s", action, size, reason)

    def _shared_bytes(self, *, largest_step: bool = False) -> int:
        """Bytes that experts and blocks may take together."""
        step = self._plan.step_bytes if largest_step else self._step_bytes
        plan = self._plan
        return max(0, plan.budget_bytes - plan.fixed_bytes - plan.kv.fixed_bytes - step - self._reserve)

    def _bytes_of_longest(self) -> int:
        """Bytes of the blocks of the longest sequence."""
        kv = self._plan.kv
        tokens = kv.max_model_len * sum(group.token_bytes for group in kv.groups)
        return min(self._most_kv, tokens + kv.extent_bytes)

    def _most_overcommit(self) -> int:
        return (GROWTH_BYTES + self._step_bytes) // OVERCOMMIT_SHARE

    def _least(self) -> int:
        """The least bytes of experts: those of a token, and those that are pinned."""
        slot_bytes = max(layout.slot_bytes for layout in self._plan.needs.catalog.layouts)
        return min(self._most_experts, self._least_experts + len(self._store.pinned) * slot_bytes)

    def _rebalance(self) -> None:
        """Give experts what blocks may not take."""
        self._resize_experts(self._shared_bytes() - self.allowance.limit_bytes)
        self._set_kept()
        self._give_rest_to_kv()

    def _give_rest_to_kv(self) -> None:
        """Let blocks take what is left when all experts are in memory."""
        if not self._plan.is_kv_pinned:
            self.allowance.limit_bytes = max(self.allowance.limit_bytes, self._beyond_all_experts())

    def _beyond_all_experts(self) -> int:
        """Bytes that are left when all experts are in memory; less than 0 where they do not fit."""
        return min(self._most_kv, self._shared_bytes() - self._most_experts)

    def _set_kept(self) -> None:
        share = min(self._most_kv, self._shared_bytes() // KEPT_SHARE)
        self.allowance.kept_bytes = max(share, self._beyond_all_experts())

    def _resize_experts(self, nbytes: int) -> None:
        nbytes = min(self._most_experts, max(self._least(), nbytes))
        if nbytes == self._host_bytes:
            return
        try:
            self._store.resize(host_bytes=nbytes)
        except BudgetError as error:  # some were pinned meanwhile
            log.warning("experts keep their memory: %s", error)
            return
        self._host_bytes = nbytes
