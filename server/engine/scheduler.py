"""Which sequences run in the next step, and how many tokens of each. Torch-free."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from .block_manager import BlockManager
from .sequence import Sequence


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


class Scheduler:
    """First come, first served, with chunked prefill and preemption by recomputation.

    The oldest sequence always goes on: it may take the blocks of every younger one.
    """

    def __init__(self, blocks: BlockManager, limits: SchedulerLimits):
        self._blocks = blocks
        self._limits = limits
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # oldest first
        self.num_preemptions = 0

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def schedule(self) -> list[Scheduled]:
        """The next step: what runs already, then what waits, as far as tokens and blocks reach."""
        budget = self._limits.max_batched_tokens
        step: list[Scheduled] = []
        for sequence in list(self.running):
            if budget == 0:
                break
            if sequence not in self.running:
                continue  # preempted by an older one
            budget -= self._continue(sequence, budget, step)
        while budget and self.waiting and len(self.running) < self._limits.max_running:
            sequence = self.waiting[0]
            count = min(sequence.num_uncached, budget)
            if not self._blocks.can_hold(sequence.block_table, sequence.num_cached + count):
                break
            self._blocks.hold(sequence.block_table, sequence.num_cached + count)
            self.running.append(self.waiting.popleft())
            step.append(Scheduled(sequence, count))
            budget -= count
        return step

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is, and free its blocks."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self._blocks.free(sequence.block_table)

    def _continue(self, sequence: Sequence, budget: int, step: list[Scheduled]) -> int:
        count = min(sequence.num_uncached, budget)
        while not self._blocks.can_hold(sequence.block_table, sequence.num_cached + count):
            youngest = self.running[-1]
            self._preempt(youngest)
            if youngest is sequence:
                return 0
        self._blocks.hold(sequence.block_table, sequence.num_cached + count)
        step.append(Scheduled(sequence, count))
        return count

    def _preempt(self, sequence: Sequence) -> None:
        """Send a running sequence back to the head of the queue; its tokens stay, its cache goes."""
        self.running.remove(sequence)
        self._blocks.free(sequence.block_table)
        sequence.num_cached = 0
        self.waiting.appendleft(sequence)
        self.num_preemptions += 1
