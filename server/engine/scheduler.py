"""Which sequences run in the next step, and how many tokens of each. Torch-free."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from .block_manager import BlockManager
from .sequence import Sequence

MOST_ROWS_OF_LOGITS = 64  # of a step with prompts whose tokens' logits are asked for; each has the vocabulary's size


@dataclass(frozen=True)
class SchedulerLimits:
    """How much the engine takes on at once."""

    max_running: int
    max_batched_tokens: int  # in one step


@dataclass(frozen=True)
class Scheduled:
    """A sequence and how many of its tokens go into the step."""

    sequence: Sequence
    num_tokens: int

    @property
    def reaches_end(self) -> bool:
        """Whether the step computes the sequence's last token, and so its next one can be sampled."""
        return self.num_tokens == self.sequence.num_uncached

    @property
    def num_logits(self) -> int:
        if self.sequence.pool is not None:
            return 0
        return self.num_tokens if self.sequence.wants_prompt_logits else int(self.reaches_end)

    @property
    def num_hidden(self) -> int:
        pool = self.sequence.pool
        return 0 if pool is None else pool.num_hidden(self.num_tokens, reaches_end=self.reaches_end)


class Stage(Protocol):
    """Says which of the sequences that decode go on in this step, and whether new ones may begin."""

    admits: bool

    def choose(self, sequences: list[Sequence]) -> list[Sequence]:
        """Some of them, at least one, in their order."""


class Scheduler:
    """By priority, then first come, first served, with chunked prefill and preemption by recomputation.

    The first sequence always goes on: it may take the blocks of every later one. A sequence whose prompt begins with
    what a running one is about to compute waits for that instead of computing it, too.

    Args:
        release: told of each slot that becomes free.
    """

    def __init__(
        self,
        blocks: BlockManager,
        limits: SchedulerLimits,
        stage: Stage | None = None,
        release: Callable[[int], None] = lambda _: None,
    ):
        self._blocks, self._limits, self._stage, self._release = blocks, limits, stage, release
        self.waiting: list[Sequence] = []  # first to go first, as in running
        self.running: list[Sequence] = []
        self._free_slots = list(range(limits.max_running))[::-1]
        self.num_preemptions = 0
        self.num_queried_tokens = 0  # of prompts that were looked for in the cache
        self.num_reused_tokens = 0

    def add(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=_order)

    def schedule(self) -> list[Scheduled]:
        """The next step: decodes, then what is left of prompts, then who waits, as far as tokens and blocks reach."""
        step: list[Scheduled] = []
        preempted_before = self.num_preemptions
        budget = self._limits.max_batched_tokens
        for sequence in self._in_turn():
            if budget > 0 and sequence in self.running:  # else preempted by an earlier one
                budget -= self._continue(sequence, budget, step)
        # Who was preempted would be next, and meet the same lack of blocks.
        if self.num_preemptions == preempted_before and (not step or self._stage is None or self._stage.admits):
            self._begin_waiting(step, budget)
        return step

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is, and free its blocks."""
        if sequence in self.running:
            self._leave(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self._blocks.free(sequence.blocks)

    def _in_turn(self) -> list[Sequence]:
        """The running ones, decodes first, so that no long prompt holds them up."""
        decodes = [sequence for sequence in self.running if sequence.num_uncached == 1]
        prefills = [sequence for sequence in self.running if sequence.num_uncached > 1]
        if self._stage is not None and decodes:
            decodes = self._stage.choose(decodes)
        return [*decodes, *prefills]

    def _begin_waiting(self, step: list[Scheduled], budget: int) -> None:
        for sequence in list(self.waiting):
            if budget <= 0 or not self._has_place(sequence, step):
                return
            num_reusable = 0
            if not sequence.needs_all_tokens:
                num_reusable = self._blocks.num_reusable(sequence.blocks, sequence.content_ids)
                if self._blocks.is_promised(sequence.blocks, num_reusable):
                    continue
            count = self._most_tokens(sequence, num_reusable, budget, step)
            while not self._blocks.can_hold(sequence.blocks, num_reusable + count, num_reusable):
                if not self._preempt_for(sequence, step):
                    return
            self._admit(sequence, num_reusable, count)
            step.append(Scheduled(sequence, count))
            budget -= count

    def _has_place(self, sequence: Sequence, step: list[Scheduled]) -> bool:
        """Whether one more may run; a request of better priority takes the place of the last."""
        return len(self.running) < self._limits.max_running or self._preempt_for(sequence, step)

    def _preempt_for(self, sequence: Sequence, step: list[Scheduled]) -> bool:
        """Preempt the last running sequence if a waiting one is of better priority; whether it was."""
        if not self.running or self.running[-1].request.priority <= sequence.request.priority:
            return False
        self._preempt(self.running[-1], step)
        return True

    def _admit(self, sequence: Sequence, num_reusable: int, count: int) -> None:
        if not sequence.needs_all_tokens:
            self.num_queried_tokens += len(sequence.token_ids)
            self.num_reused_tokens += num_reusable
        self._blocks.adopt(sequence.blocks, num_reusable)
        self._blocks.promise(sequence.blocks)
        self._blocks.hold(sequence.blocks, num_reusable + count)
        sequence.num_cached = num_reusable
        if sequence.timeline.started_at is None:
            sequence.timeline.num_cached_tokens = num_reusable
        sequence.slot = self._free_slots.pop()
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=_order)

    def _continue(self, sequence: Sequence, budget: int, step: list[Scheduled]) -> int:
        count = self._most_tokens(sequence, sequence.num_cached, budget, step)
        while not self._blocks.can_hold(sequence.blocks, sequence.num_cached + count):
            last = self.running[-1]
            self._preempt(last, step)
            if last is sequence:
                return 0
        self._blocks.hold(sequence.blocks, sequence.num_cached + count)
        step.append(Scheduled(sequence, count))
        return count

    def _most_tokens(self, sequence: Sequence, first: int, budget: int, step: list[Scheduled]) -> int:
        """How many tokens from ``first`` on go into a step; more than the budget if an image needs them."""
        num_tokens = len(sequence.token_ids)
        if sequence.wants_prompt_logits:
            budget = min(budget, max(1, MOST_ROWS_OF_LOGITS - sum(item.num_logits for item in step)))
        most = min(num_tokens - first, budget)
        return self._blocks.cut(first, sequence.end_without_cut(first, first + most), num_tokens) - first

    def _leave(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._free_slots.append(sequence.slot)
        self._release(sequence.slot)

    def _preempt(self, sequence: Sequence, step: list[Scheduled]) -> None:
        """Send a running sequence back to the queue, also out of the step; its tokens stay, its blocks go."""
        step[:] = [item for item in step if item.sequence is not sequence]
        self._leave(sequence)
        self._blocks.free(sequence.blocks)
        sequence.num_cached = 0
        insort(self.waiting, sequence, key=_order)
        self.num_preemptions += 1
        sequence.timeline.num_preemptions += 1


def _order(sequence: Sequence) -> tuple[int, int]:
    return sequence.order
