"""Clock-driven rotation of decode groups, for when the experts of all sequences do not fit the cache.

While decode steps stall much on experts, sequences are grouped by the experts they use. If a group whose experts fit
the cache promises clearly more tokens a second than all sequences together, the time to load its experts included,
decode groups alternate: each decodes for a time slice, and the other sequences are held with their KV cache. New
requests wait in the queue until the slice ends. ``GroupingBenefit`` measures whether grouping pays. Torch-free.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence

from server.engine.admission.benefit import GroupingBenefit
from server.engine.admission.planner import DecodeGroup, GroupPlanner
from server.engine.scheduler import Scheduled
from server.engine.sequence import Sequence
from server.model.step import StepOutput

MIN_STALL_SHARE = 0.25  # part of decode time; below it no group is planned
MIN_GAIN_TO_BEGIN, MIN_GAIN_TO_CONTINUE = 1.15, 1.0  # expected tokens a second of a group over those of all sequences
STEPS_BETWEEN_PLANS = 8  # decode steps


class DecodeGroupRotation:
    """A ``DecodeAdmission`` that lets decode groups alternate while that pays.

    Args:
        planner: plans the groups.
        clock: returns seconds.
    """

    def __init__(self, planner: GroupPlanner, clock: Callable[[], float] = time.perf_counter):
        self._planner, self._clock = planner, clock
        self._benefit = GroupingBenefit()
        self._group: list[Sequence] = []  # the sequences that decode in this slice; empty means all
        self._min_group_size = 0  # the slice ends once fewer sequences of the group are left
        self._slice_ends_at = 0.0
        self._is_comparing = False  # all sequences decode, to measure their rate
        self._had_slice: set[Sequence] = set()  # sequences that had a slice in this round
        self._num_steps_since_plan = 0
        self.admits_new = True
        self.num_held = self.num_slices = 0

    @property
    def stall_share(self) -> float:
        """Part of recent decode time in which compute waited for experts, 0 to 1."""
        return self._planner.stall_share

    def is_held(self, sequence: Sequence) -> bool:
        """Return whether a decoding sequence waits for its slice; from any thread."""
        group = self._group
        return bool(group) and sequence not in group

    def select(self, sequences: list[Sequence]) -> list[Sequence]:
        """Return the decoding sequences that take part in this step."""
        now = self._clock()
        self.admits_new = True
        if self._group:
            self._continue_slice(sequences, now)
        elif self._is_comparing:
            if now >= self._slice_ends_at:
                self._is_comparing = False
                self._begin_round(sequences, now, MIN_GAIN_TO_CONTINUE)
        elif self._is_time_to_plan(sequences, now):
            self._begin_round(sequences, now, MIN_GAIN_TO_BEGIN)
        selected = self._group or sequences
        self.num_held = len(sequences) - len(selected)
        return selected

    def record_step(self, step: AbstractSequence[Scheduled], output: StepOutput, seconds: float) -> None:
        """Learn from a step which experts its sequences use, and what the step cost."""
        if self._planner.observe(step, output, seconds):
            self._num_steps_since_plan += 1
            self._benefit.record(len(step), seconds, is_grouped=bool(self._group))

    def _is_time_to_plan(self, sequences: list[Sequence], now: float) -> bool:
        is_slow = len(sequences) > 1 and self.stall_share >= MIN_STALL_SHARE
        return is_slow and self._num_steps_since_plan >= STEPS_BETWEEN_PLANS and self._benefit.may_group(now)

    def _begin_round(self, sequences: list[Sequence], now: float, min_gain: float) -> None:
        """Begin the first slice of a round, if the best group's expected gain is large enough."""
        self._num_steps_since_plan = 0
        self._had_slice.clear()
        self._benefit.begin_round()
        group = self._planner.plan(sequences, sequences)
        if group.gain >= min_gain:
            self._begin_slice(group, now)

    def _begin_slice(self, group: DecodeGroup, now: float) -> None:
        self._group, self._slice_ends_at = group.sequences, now + group.slice_seconds
        self._min_group_size = (len(group.sequences) + 1) // 2
        self._had_slice.update(group.sequences)
        self.num_slices += 1

    def _continue_slice(self, sequences: list[Sequence], now: float) -> None:
        """Go on with the slice, or end it when its time is over or most of its group has ended."""
        left = [sequence for sequence in self._group if sequence in sequences]
        if len(sequences) > 1 and now < self._slice_ends_at and len(left) >= self._min_group_size:
            self.admits_new = False
            self._group = left
        else:
            self._end_slice(sequences, now)

    def _end_slice(self, sequences: list[Sequence], now: float) -> None:
        """Begin the slice of the sequence that has waited longest.

        The round ends if every sequence had a slice, or slices are clearly slower than all sequences together.
        """
        self._group = []
        waiting = [sequence for sequence in sequences if sequence not in self._had_slice]
        if not waiting or self._benefit.is_loss:
            self._end_round(sequences, now)
        elif len(sequences) > 1:
            self._begin_slice(self._planner.plan(sequences, waiting), now)

    def _end_round(self, sequences: list[Sequence], now: float) -> None:
        self._had_slice.clear()
        decision = self._benefit.end_round(now)
        if decision == "continue":
            self._begin_round(sequences, now, MIN_GAIN_TO_CONTINUE)
        elif decision == "compare":
            self._is_comparing = True
