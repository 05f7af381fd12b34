"""The budget that experts, KV cache and requests share on a CPU, where all are in host memory.

Experts get all of it except the blocks of sequences and what requests hold. Experts shrink before these grow.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from expert_store import BudgetError, ExpertStore
from server.byte_sizes import format_bytes
from server.engine.kv.block_manager import BlockManager
from server.engine.kv.extents import Allowance
from server.memory.plan import GROWTH_BYTES, MemoryPlan
from server.memory.step_memory import step_bytes
from server.memory.usage import Action, Adjustments, Cause

log = logging.getLogger(__name__)

OVERCOMMIT_SHARE = 2  # experts may get 1/2 of the memory reserved for steps and growth
CHUNKS = 64  # the shared budget moves in chunks of 1/64 at least
KEPT_SHARE = 8  # cached prefixes that no sequence uses may hold 1/8 of the shared budget
REQUEST_SHARE = 2  # requests may hold 1/2 of what experts and blocks do not need to go on
REQUESTS_IN_GROWTH = 16 << 20  # bytes that requests may hold in any case; a part of GROWTH_BYTES
HOLD_SECONDS = 10.0  # blocks must be unused for so long before experts get their memory
TICK_SECONDS = 1.0  # time between checks for unused blocks
MOST_WAIT_SECONDS = 1.0  # longest wait for reads into slots that are to be removed


class ElasticBudget:
    """Moves memory between experts and KV cache, and keeps a reserve from both.

    The engine's thread calls ``grow_kv_cache``, ``reserve_for_step`` and ``reclaim``; any thread may call
    ``set_reserve`` and ``make_room_for_requests``.

    Args:
        store: a store whose host tier has the planned size.
        unfilled_beside: returns the bytes that others have been granted and do not use yet.
    """

    def __init__(
        self,
        store: ExpertStore,
        plan: MemoryPlan,
        clock: Callable[[], float] = time.monotonic,
        unfilled_beside: Callable[[], int] = lambda: 0,
    ):
        self._unfilled_beside = unfilled_beside
        self.adjustments = Adjustments()
        self._store, self._plan, self._clock = store, plan, clock
        self._step_bytes, self._pass_bytes = plan.first_step_bytes, 0
        self._most_tokens = self._most_logits = 0  # of a step so far
        self._reserve = self._requests = 0
        self._was_shrink: bool | None = None
        self._lock = threading.RLock()  # guards the budgets and the reserve
        self._host_bytes = plan.host_bytes
        self._least_experts = plan.host_bytes if plan.has_expert_budget else plan.least_host_bytes
        self._most_kv = plan.kv.nbytes - plan.kv.fixed_bytes
        self._first_kv = self._most_kv if plan.has_kv_budget else plan.kv.first_bytes - plan.kv.fixed_bytes
        self._chunk = max(plan.kv.extent_bytes, self._shared_bytes() // CHUNKS)
        self._reclaimed_at = clock()
        self._window_began, self._peak, self._peak_before = clock(), 0, 0
        self.before_growth: Callable[[], None] = _nothing  # ends what keeps experts in memory, in the engine's thread
        self.allowance = Allowance(self._first_kv, grow=self.grow_kv_cache)
        self._set_kept()
        with self._lock:
            self._give_rest_to_kv()

    @property
    def _most_experts(self) -> int:
        """Bytes that experts may take, those of variants included."""
        return self._plan.host_bytes if self._plan.has_expert_budget else self._store.catalog.all_bytes

    def count_experts(self) -> None:
        """Divide the memory anew after variants have come or gone."""
        with self._lock:
            self._rebalance()

    @property
    def step_bytes(self) -> int:
        """Bytes reserved for the tensors of a step, and for those of a pass."""
        return self._step_bytes + self._pass_bytes

    @property
    def expert_budget(self) -> int:
        return self._host_bytes

    @property
    def unfilled_bytes(self) -> int:
        """Bytes that experts, blocks and others have been granted and do not use yet."""
        experts = max(0, self._host_bytes - self._store.host_resident_bytes)
        blocks = max(0, self.allowance.limit_bytes - self.allowance.taken_bytes)
        return experts + blocks + self._unfilled_beside()

    @property
    def reserve_bytes(self) -> int:
        """Bytes kept from experts and blocks; negative if the budget is overcommitted."""
        return self._reserve

    @property
    def request_limit_bytes(self) -> int:
        """The most bytes that requests may hold: experts keep their minimum, and the longest sequence its blocks."""
        kv = self._most_kv if self._plan.has_kv_budget else max(self._first_kv, self._bytes_of_longest())
        left = self._left_bytes(largest_step=True) - self._least() - kv  # whatever is granted to requests now
        return REQUESTS_IN_GROWTH + max(0, left) // REQUEST_SHARE

    def make_room_for_requests(self, nbytes: int) -> int:
        """Move memory so that requests may hold ``nbytes``, or as much as experts and unused blocks give up.

        Returns:
            the bytes that requests may hold now. The engine's next ``reclaim`` frees cached prefixes for the rest.
        """
        with self._lock:
            rounded = -(-(nbytes + self._chunk) // self._chunk) * self._chunk
            wanted = min(self.request_limit_bytes, max(REQUESTS_IN_GROWTH, rounded))
            if not self._requests - 2 * self._chunk <= wanted <= self._requests:
                self._requests = wanted
                if not self._plan.has_kv_budget:
                    # Blocks keep a chunk, since the engine may take some just now.
                    needed = max(self._first_kv, self.allowance.taken_bytes + self._chunk, self._beyond_all_experts())
                    self.allowance.limit_bytes = min(self.allowance.limit_bytes, needed)
                self._rebalance()
            taken = self._store.host_slot_bytes + max(self.allowance.limit_bytes, self.allowance.taken_bytes)
            free = self._left_bytes() - taken
            return min(self._requests, REQUESTS_IN_GROWTH + max(0, free))

    @property
    def can_shrink(self) -> bool:
        """True if experts have more than their minimum."""
        return self._host_bytes > self._least()

    def grow_kv_cache(self, nbytes: int) -> None:
        """Grant blocks ``nbytes`` more, or as many as experts can give up."""
        if self._plan.has_kv_budget:
            return
        self.before_growth()
        with self._lock:
            allowance = self.allowance
            # The longest sequence must be able to continue, whatever the reserve is.
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

    def reserve_for_pass(self) -> None:
        """Reserve memory for passes of prompts, at the first one."""
        if not self._pass_bytes:
            self._pass_bytes = self._plan.pass_bytes
            with self._lock:
                self._rebalance()

    def reserve_for_step(self, num_tokens: int, num_logits: int) -> None:
        """Reserve memory for a step, if it is larger than all steps before."""
        if num_tokens <= self._most_tokens and num_logits <= self._most_logits:
            return
        self._most_tokens = max(self._most_tokens, num_tokens)
        self._most_logits = max(self._most_logits, num_logits)
        shape, plan = self._plan.needs.step, self._plan
        if step_bytes(shape, num_tokens, num_logits) <= self._step_bytes:
            return
        nbytes = step_bytes(shape, 1 << (num_tokens - 1).bit_length(), num_logits)
        with self._lock:
            self._step_bytes = max(self._step_bytes, min(nbytes, plan.step_bytes - plan.pass_bytes))
            self._rebalance()

    def reclaim(self, blocks: BlockManager) -> bool:
        """Give memory that blocks have not used lately to the experts.

        Returns:
            True if a later call may give more.
        """
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
                blocks.release_memory(needed + self._chunk, kept)
            limit = max(self._first_kv, self._beyond_all_experts(), max(allowance.taken_bytes, needed) + self._chunk)
            if not self._plan.has_kv_budget and allowance.limit_bytes > limit + self._chunk:
                allowance.limit_bytes = limit
                self._rebalance()
        return needed > blocks.used_bytes or allowance.limit_bytes > limit + self._chunk or self._beyond_growth() > 0

    def set_reserve(self, nbytes: int, cause: Cause, reason: str) -> None:
        """Keep ``nbytes`` from experts and blocks, for memory use that was not planned. Experts shrink or grow by it.

        Args:
            nbytes: a negative number gives experts memory that was reserved and is not used, up to half of it.
            cause: the label in metrics.
            reason: the text in the log.
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
            level = logging.DEBUG if is_shrink == self._was_shrink else logging.INFO  # one line per change of direction
            self._was_shrink = is_shrink
            log.log(level, "experts %s to %s: %s", action, size, reason)

    def _shared_bytes(self, *, largest_step: bool = False) -> int:
        """Return the bytes that experts and blocks may use together."""
        return max(0, self._left_bytes(largest_step=largest_step) - self._beyond_growth())

    def _left_bytes(self, *, largest_step: bool = False) -> int:
        """Return the bytes for experts, blocks, and requests beyond the memory reserved for growth."""
        plan, step = self._plan, self._plan.step_bytes if largest_step else self.step_bytes
        return plan.budget_bytes - plan.fixed_bytes - plan.kv.fixed_bytes - step - self._reserve

    def _beyond_growth(self) -> int:
        """Return the bytes granted to requests that the memory reserved for growth does not hold."""
        return max(0, self._requests - REQUESTS_IN_GROWTH)

    def _bytes_of_longest(self) -> int:
        """Return the bytes of the blocks of a sequence of maximum length."""
        kv = self._plan.kv
        tokens = kv.max_model_len * sum(group.token_bytes for group in kv.groups)
        return min(self._most_kv, tokens + kv.extent_bytes)

    def _most_overcommit(self) -> int:
        return (GROWTH_BYTES + self._step_bytes) // OVERCOMMIT_SHARE

    def _least(self) -> int:
        """Return the minimum bytes of experts: those of one token, and pinned ones."""
        slot_bytes = max(layout.slot_bytes for layout in self._plan.needs.catalog.layouts)
        return min(self._most_experts, self._least_experts + len(self._store.pinned) * slot_bytes)

    def _rebalance(self) -> None:
        """Give experts the memory that is not granted to blocks."""
        self._resize_experts(self._shared_bytes() - self.allowance.limit_bytes)
        self._set_kept()
        self._give_rest_to_kv()

    def _give_rest_to_kv(self) -> None:
        """Grant blocks the memory that is left when all experts are resident."""
        if not self._plan.has_kv_budget:
            self.allowance.limit_bytes = max(self.allowance.limit_bytes, self._beyond_all_experts())

    def _beyond_all_experts(self) -> int:
        """Return the bytes that are left when all experts are resident; negative if they do not fit."""
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
        except BudgetError as error:  # experts were pinned in the meantime
            log.warning("expert memory was not resized: %s", error)
            return
        self._host_bytes = nbytes


def _nothing() -> None:
    """Stand in for ``before_growth`` where nothing keeps experts in memory."""
