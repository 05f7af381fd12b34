"""Scheduling: the sequences that run in the next step, and the number of tokens of each. Torch-free."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from server.engine.interface import EngineError
from server.engine.kv.block_manager import BlockManager
from server.engine.sequence import Sequence
from server.engine.step_limits import MAX_LOGITS_ROWS


@dataclass(frozen=True)
class SchedulerLimits:
    """Limits of a step."""

    max_running: int  # sequences
    max_batched_tokens: int  # in one step


@dataclass(slots=True)
class Scheduled:
    """A sequence and the number of its tokens in the step; the rest is as the sequence is when it is scheduled."""

    sequence: Sequence
    num_tokens: int
    reaches_end: bool = field(init=False)  # whether it computes the last token, so that the next one can be sampled
    num_logits: int = field(init=False)
    num_hidden: int = field(init=False)

    def __post_init__(self) -> None:
        sequence, pooler = self.sequence, self.sequence.pooler
        self.reaches_end = self.num_tokens == sequence.num_uncached
        self.num_logits = self.num_hidden = 0
        if pooler is not None:
            self.num_hidden = pooler.num_hidden(self.num_tokens, reaches_end=self.reaches_end)
        elif sequence.wants_prompt_logits:
            self.num_logits = self.num_tokens
        else:
            self.num_logits = int(self.reaches_end)


class DecodeAdmission(Protocol):
    """Chooses the decoding sequences that take part in a step, and whether waiting ones may begin."""

    admits_new: bool  # whether waiting sequences may begin in this step

    def select(self, sequences: list[Sequence]) -> list[Sequence]:
        """Return some of the decoding sequences, at least one, in their order."""


class Scheduler:
    """Schedules by priority, then first come, first served, with chunked prefill and preemption by recomputation.

    The first sequence always makes progress: it may take the blocks of every later one. A sequence whose prompt begins
    with blocks that a running one is about to compute waits for them instead of computing them as well. One whose
    weights are being loaded waits too, and others begin before it; a running sequence keeps its weights in memory.

    Args:
        admission: chooses the sequences that decode; None lets all of them decode.
        release: called with each slot that becomes free.
        allocates_ahead: whether a decode gets the block of the token after its own, if it can, so that its next step
            may begin before it is scheduled.
    """

    def __init__(
        self,
        blocks: BlockManager,
        limits: SchedulerLimits,
        admission: DecodeAdmission | None = None,
        release: Callable[[int], None] = lambda _: None,
        *,
        allocates_ahead: bool = False,
    ):
        self._allocates_ahead = allocates_ahead
        self._blocks, self._limits, self._admission, self._release = blocks, limits, admission, release
        self.waiting: list[Sequence] = []  # in the order of their priority, as is ``running``
        self.running: list[Sequence] = []
        self._free_slots = list(range(limits.max_running))[::-1]
        self.waits_for_pass: Callable[[Sequence], bool] | None = None  # whether a waiting sequence must not begin now
        self.cancel_pass: Callable[[], None] = _no_pass  # called before a sequence of a pass leaves ``running``
        self.failed: list[tuple[Sequence, EngineError]] = []  # waiting sequences whose weights can't be loaded
        self.waits_for_weights = False  # the weights of a waiting sequence are being loaded
        self.num_preemptions = 0
        self.num_queried_tokens = 0  # prompt tokens looked up in the prefix cache
        self.num_reused_tokens = 0  # prompt tokens found there

    def add(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=_order)

    def schedule(self) -> list[Scheduled]:
        """Return the next step: decodes, then running prefills, then waiting sequences, within tokens and blocks.

        The caller removes the sequences in ``failed``.
        """
        step: list[Scheduled] = []
        self.failed.clear()
        self.waits_for_weights = False
        preempted_before = self.num_preemptions
        budget = self._limits.max_batched_tokens
        for sequence in self._runnable():
            if budget > 0 and sequence in self.running:  # otherwise an earlier one has preempted it
                budget -= self._continue(sequence, budget, step)
        # A preempted sequence would be the next to begin, and lack blocks again.
        if (not step or self.admits_new) and self.num_preemptions == preempted_before:
            self._begin_waiting(step, budget)
        return step

    def remove(self, sequence: Sequence) -> None:
        """Remove a running or waiting sequence and free its blocks."""
        if sequence.in_pass is not None:
            self.cancel_pass()
        if sequence in self.running:
            self._leave(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self._blocks.free(sequence.blocks)

    @property
    def num_decoding(self) -> int:
        """Running sequences whose next step computes one token."""
        return sum(sequence.num_uncached == 1 for sequence in self.running)

    @property
    def admits_new(self) -> bool:
        """True if waiting sequences may begin beside those that decode."""
        return self._admission is None or self._admission.admits_new

    @property
    def has_room(self) -> bool:
        """True if the first waiting sequence may get a slot."""
        if not self.waiting or len(self.running) < self._limits.max_running:
            return bool(self.waiting)
        return self.running[-1].request.priority > self.waiting[0].request.priority

    def begin(self, sequence: Sequence, step: list[Scheduled], budget: int) -> int | None:
        """Add a waiting sequence to a step if its weights are in memory; returns as ``_try_begin``."""
        if not self._acquire_weights(sequence):
            return 0
        count = self._try_begin(sequence, step, budget)
        if not count:
            _release_weights(sequence)
        return count

    def resume(self, sequence: Sequence, step: list[Scheduled], budget: int) -> int:
        """Add a running sequence to a step; return the number of its tokens, 0 if it is preempted."""
        return self._continue(sequence, budget, step)

    def extend(self, sequence: Sequence, step: list[Scheduled], budget: int, spare_tokens: int) -> int:
        """Add a running sequence to a later step of a pass if no other loses blocks for it; return its tokens' number.

        Args:
            spare_tokens: blocks for so many more tokens stay available.
        """
        count = self._most_tokens(sequence, sequence.num_cached, budget, step)
        num_tokens = sequence.num_cached + count
        if not self._blocks.has_allocated(sequence.blocks, num_tokens):
            if not self._blocks.can_allocate(sequence.blocks, num_tokens + spare_tokens):
                self._blocks.recycle(sequence.blocks, sequence.num_cached, num_tokens, spare_tokens)
                if not self._blocks.can_allocate(sequence.blocks, num_tokens + spare_tokens):
                    return 0
            self._blocks.allocate(sequence.blocks, num_tokens)
        step.append(Scheduled(sequence, count))
        return count

    def requeue(self, sequence: Sequence) -> None:
        """Move a running sequence back to the queue. It keeps its tokens and loses its blocks."""
        self._leave(sequence)
        self._blocks.free(sequence.blocks)
        sequence.num_cached = 0
        insort(self.waiting, sequence, key=_order)

    def _runnable(self) -> list[Sequence]:
        """Return the running sequences that may be in the step, decodes first, so that no long prompt delays them."""
        decodes = [sequence for sequence in self.running if sequence.num_uncached == 1]
        prefills = [sequence for sequence in self.running if sequence.num_uncached > 1 and sequence.in_pass is None]
        if self._admission is not None and decodes:
            decodes = self._admission.select(decodes)
        return [*decodes, *prefills]

    def _begin_waiting(self, step: list[Scheduled], budget: int) -> None:
        """Add waiting sequences to the step while there are tokens, slots and blocks for them."""
        waits_for_pass = self.waits_for_pass
        if waits_for_pass is not None and not self.has_room:
            return
        for sequence in list(self.waiting):
            if budget <= 0:
                return
            if waits_for_pass is not None and waits_for_pass(sequence):
                continue
            count = self.begin(sequence, step, budget)
            if count is None:
                return
            budget -= count

    def _try_begin(self, sequence: Sequence, step: list[Scheduled], budget: int) -> int | None:
        """Begin a waiting sequence whose weights are in memory.

        Returns:
            The number of its tokens in the step, 0 if it waits for blocks that a running sequence computes, or None if
            there are no slots, blocks or tokens of the step for it.
        """
        if not self._has_slot(sequence, step):
            return None
        num_reusable = 0
        if not sequence.needs_all_tokens:
            num_reusable = self._blocks.num_reusable(sequence.blocks, sequence.prefix_cache_ids)
            if self._blocks.is_pending(sequence.blocks, num_reusable):
                return 0
        if sequence.is_whole and step and len(sequence.token_ids) > budget:
            return None
        count = self._most_tokens(sequence, num_reusable, budget, step)
        while not self._blocks.can_allocate(sequence.blocks, num_reusable + count, num_reusable):
            if not self._preempt_for(sequence, step):
                return None
        self._admit(sequence, num_reusable, count)
        step.append(Scheduled(sequence, count))
        return count

    def _acquire_weights(self, sequence: Sequence) -> bool:
        """Return whether a sequence has its weights now."""
        weights = sequence.weights
        if weights is None:
            return True
        try:
            is_acquired = weights.acquire()
        except EngineError as error:
            self.failed.append((sequence, error))
            return False
        self.waits_for_weights |= not is_acquired
        return is_acquired

    def _has_slot(self, sequence: Sequence, step: list[Scheduled]) -> bool:
        """Return whether one more may run; a request of better priority takes the slot of the last."""
        return len(self.running) < self._limits.max_running or self._preempt_for(sequence, step)

    def _preempt_for(self, sequence: Sequence, step: list[Scheduled]) -> bool:
        """Preempt the last running sequence if the waiting one has better priority; return whether it did."""
        if not self.running or self.running[-1].request.priority <= sequence.request.priority:
            return False
        self._preempt(self.running[-1], step)
        return True

    def _admit(self, sequence: Sequence, num_reusable: int, count: int) -> None:
        if not sequence.needs_all_tokens:
            self.num_queried_tokens += len(sequence.token_ids)
            self.num_reused_tokens += num_reusable
        self._blocks.reuse_prefix(sequence.blocks, num_reusable)
        self._blocks.mark_pending(sequence.blocks)
        self._blocks.allocate(sequence.blocks, num_reusable + count)
        sequence.num_cached = num_reusable
        if sequence.timeline.started_at is None:
            sequence.timeline.num_cached_tokens = num_reusable
        sequence.slot = self._free_slots.pop()
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=_order)

    def _continue(self, sequence: Sequence, budget: int, step: list[Scheduled]) -> int:
        count = self._most_tokens(sequence, sequence.num_cached, budget, step)
        num_tokens = sequence.num_cached + count
        if not self._blocks.has_allocated(sequence.blocks, num_tokens):  # as most decodes have
            while not self._blocks.can_allocate(sequence.blocks, num_tokens):
                last = self.running[-1]
                self._preempt(last, step)
                if last is sequence:
                    return 0
            self._blocks.allocate(sequence.blocks, num_tokens)
        if self._allocates_ahead and count == 1 and sequence.may_continue:
            self._allocate_ahead(sequence, num_tokens + 1)
        step.append(Scheduled(sequence, count))
        return count

    def _allocate_ahead(self, sequence: Sequence, num_tokens: int) -> None:
        """Allocate the block of a token that a later step computes, if there is one."""
        blocks = sequence.blocks
        if not self._blocks.has_allocated(blocks, num_tokens) and self._blocks.can_allocate(blocks, num_tokens):
            self._blocks.allocate(blocks, num_tokens)

    def _most_tokens(self, sequence: Sequence, first: int, budget: int, step: list[Scheduled]) -> int:
        """Return how many tokens from ``first`` on go into a step; more than the budget if an image needs them."""
        num_tokens = len(sequence.token_ids)
        if sequence.is_whole or num_tokens - first == 1:
            return num_tokens if sequence.is_whole else 1
        if sequence.wants_prompt_logits:
            budget = min(budget, max(1, MAX_LOGITS_ROWS - sum(item.num_logits for item in step)))
        most = min(num_tokens - first, budget)
        return self._blocks.chunk_end(first, sequence.end_without_split(first, first + most), num_tokens) - first

    def _leave(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._free_slots.append(sequence.slot)
        self._release(sequence.slot)
        _release_weights(sequence)

    def _preempt(self, sequence: Sequence, step: list[Scheduled]) -> None:
        """Move a running sequence back to the queue and out of the step; with it, all sequences of its pass."""
        step[:] = [item for item in step if item.sequence is not sequence]
        if sequence.in_pass is None:
            self.requeue(sequence)
        else:
            self.cancel_pass()
        self.num_preemptions += 1
        sequence.timeline.num_preemptions += 1


def _no_pass() -> None:
    """Do nothing, as there is no pass to cancel."""


def _release_weights(sequence: Sequence) -> None:
    if sequence.weights is not None:
        sequence.weights.release()


def _order(sequence: Sequence) -> tuple[int, int]:
    return sequence.order
