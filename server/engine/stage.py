"""Who decodes now, where the experts of all would not fit: sequences that share experts take the stage in turns.

While decode steps wait much for experts, sequences are grouped by the experts they use. If a group that fits the cache
promises clearly more tokens a second than all together, even with the time it takes to fetch its experts, groups go on
in turns and the others are held, with their KV cache; meanwhile new requests wait in the queue until the next change.
Whether that pays is measured: held rounds against time with everybody on stage, which comes back now and then.
Torch-free.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from server.model.step import StepOutput

from .scheduler import Scheduled
from .sequence import Sequence
from .working_set import StepCosts, WorkingSets

NO_STALL_SHARE = 0.001  # of decode time, that is no stall any longer
LEAST_STALL_SHARE = 0.25  # of decode time, from which on groups are thought of
GAIN_TO_BEGIN, GAIN_TO_GO_ON = 1.15, 1.0  # in tokens a second, as expected
GAIN_TO_KEEP = 1.05  # as measured
PLAN_STEPS = 8  # decode steps between two thoughts of beginning
REFILLS_A_TURN = 6  # a turn lasts so many times as long as fetching the experts of a full cache
LEAST_TURN_SECONDS, MOST_TURN_SECONDS = 0.5, 3.0
ROUNDS_UNTIL_CHECK = 8  # then everybody is on stage for one turn, to compare
FIRST_PAUSE_SECONDS, MOST_PAUSE_SECONDS = 15.0, 600.0  # after it did not pay
FORGETTING = 0.95  # of the measured rate, a step


@dataclass
class Rate:
    """Tokens over seconds of recent decode steps."""

    num_tokens: float = 0.0
    seconds: float = 0.0

    def add(self, num_tokens: int, seconds: float, keep: float = 1.0) -> None:
        self.num_tokens, self.seconds = keep * self.num_tokens + num_tokens, keep * self.seconds + seconds

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Plan:
    """A group, and what is expected of it."""

    group: list[Sequence]
    gain: float  # tokens a second, over those of everybody together
    seconds: float  # of a turn


class WorkingSetStage:
    """A ``Stage`` of groups that fit the cache.

    Args:
        working_sets: what sequences use.
        layer_slots: gives the slots of each layer, in the order of the working sets' layers, ``(layers,)``.
        clock: seconds.
    """

    def __init__(
        self,
        working_sets: WorkingSets,
        layer_slots: Callable[[], npt.NDArray[np.int64]],
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._sets, self._layer_slots, self._clock = working_sets, layer_slots, clock
        self._costs = StepCosts()
        self._group: list[Sequence] = []  # who is on stage; empty is everybody
        self._least_left = 0  # of the group, or its turn is over
        self._turn_ends = self._retry_at = 0.0
        self._is_checking = False  # everybody is on stage, to compare
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._steps_since_plan = self._num_rounds = 0
        self._had_turn: set[Sequence] = set()  # in this round
        self._together, self._in_turns = Rate(), Rate()
        self.admits = True  # whether new requests may begin in this step
        self.num_held = self.num_turns = 0

    @property
    def stall_share(self) -> float:
        """The part of recent decode time in which compute waited for experts."""
        return self._costs.stall_share

    def holds(self, sequence: Sequence) -> bool:
        """Whether a sequence that decodes is to wait for its turn; from any thread."""
        group = self._group
        return bool(group) and sequence not in group

    def choose(self, sequences: list[Sequence]) -> list[Sequence]:
        """Who of those that decode is on stage."""
        now = self._clock()
        self.admits = True
        if self._group:
            left = [sequence for sequence in self._group if sequence in sequences]
            if len(sequences) > 1 and now < self._turn_ends and len(left) >= self._least_left:
                self.admits = False
                self._group = left
            else:
                self._next_turn(sequences, now)
        elif self._is_checking:
            if now >= self._turn_ends:
                self._is_checking = False
                self._begin(sequences, now, GAIN_TO_GO_ON)
        elif self._is_time_to_plan(sequences, now):
            self._begin(sequences, now, GAIN_TO_BEGIN)
        chosen = self._group or sequences
        self.num_held = len(sequences) - len(chosen)
        return chosen

    def note(self, step: AbstractSequence[Scheduled], output: StepOutput, seconds: float) -> None:
        """Learn from a step: who used what, and what it cost."""
        cost = output.experts
        if not cost.num_misses and self.stall_share < NO_STALL_SHARE:
            return  # all experts are in memory
        if any(layer not in output.routing for layer in self._sets.layers):
            return  # images went elsewhere, where a layer has experts for them, or a prompt has not come whole
        chosen = _stack(output, self._sets.layers)
        self._sets.add(chosen)
        start = 0
        for item in step:
            use = item.sequence.expert_use = item.sequence.expert_use or self._sets.new_use()
            use.add(chosen[:, start : start + item.num_tokens])
            start += item.num_tokens
        if any(item.num_tokens > 1 for item in step):
            return
        self._steps_since_plan += 1
        self._costs.add(seconds, cost.stall_seconds, cost.num_lookups, cost.num_misses)
        if self._group:
            self._in_turns.add(len(step), seconds)
        else:
            self._together.add(len(step), seconds, FORGETTING)

    def _is_time_to_plan(self, sequences: list[Sequence], now: float) -> bool:
        is_slow = len(sequences) > 1 and self.stall_share >= LEAST_STALL_SHARE
        return is_slow and self._steps_since_plan >= PLAN_STEPS and now >= self._retry_at

    def _begin(self, sequences: list[Sequence], now: float, least_gain: float) -> None:
        """Go on in turns, if that promises so much."""
        self._steps_since_plan = 0
        self._had_turn.clear()
        self._in_turns = Rate()
        plan = self._plan(sequences, sequences)
        if plan.gain >= least_gain:
            self._raise_curtain(plan, now)

    def _next_turn(self, sequences: list[Sequence], now: float) -> None:
        """The group of the one that has waited longest; after a round, whether turns go on at all."""
        self._group = []
        waiting = [sequence for sequence in sequences if sequence not in self._had_turn]
        if not waiting:
            self._end_round(sequences, now)
        elif len(sequences) > 1:
            self._raise_curtain(self._plan(sequences, waiting), now)

    def _end_round(self, sequences: list[Sequence], now: float) -> None:
        self._had_turn.clear()
        if self._in_turns.tokens_per_second < GAIN_TO_KEEP * self._together.tokens_per_second:
            self._retry_at = now + self._pause_seconds
            self._pause_seconds = min(2 * self._pause_seconds, MOST_PAUSE_SECONDS)
            return
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._num_rounds += 1
        if self._num_rounds % ROUNDS_UNTIL_CHECK:
            self._begin(sequences, now, GAIN_TO_GO_ON)
        else:
            self._is_checking, self._together = True, Rate()

    def _raise_curtain(self, plan: Plan, now: float) -> None:
        self._group, self._turn_ends = plan.group, now + plan.seconds
        self._least_left = (len(plan.group) + 1) // 2
        self._had_turn.update(plan.group)
        self.num_turns += 1

    def _plan(self, everybody: list[Sequence], waiting: list[Sequence]) -> Plan:
        """The best group around the first of those who wait."""
        slots = self._layer_slots()
        together = self._sets.chances([sequence.expert_use or self._sets.new_use() for sequence in everybody])
        touched, missed = self._sets.expected(together, slots)
        rate_together = len(everybody) / self._costs.seconds(touched[-1:], missed[-1:])[0]
        chances = together[[everybody.index(sequence) for sequence in waiting]]
        order = self._sets.by_affinity(chances, 0)
        touched, missed = self._sets.expected(chances[order], slots)
        refill_seconds = self._costs.seconds_a_miss * int(slots.sum())
        turn = float(np.clip(REFILLS_A_TURN * refill_seconds, LEAST_TURN_SECONDS, MOST_TURN_SECONDS))
        rates = np.arange(1, len(order) + 1) / self._costs.seconds(touched, missed)
        best = int(rates.argmax())
        group = [waiting[index] for index in sorted(order[: best + 1])]
        gain = float(rates[best] / rate_together) * turn / (turn + refill_seconds)
        return Plan(group, gain, turn)


def _stack(output: StepOutput, layers: AbstractSequence[int]) -> npt.NDArray[np.int64]:
    """What all layers chose, ``(layers, tokens, k)``; where a layer chooses fewer, the rest is none."""
    chosen = [output.routing[layer] for layer in layers]
    widths = {layer.shape[1] for layer in chosen}
    if len(widths) == 1:
        return np.stack(chosen)
    most = max(widths)
    none = np.iinfo(np.int64).max
    return np.stack([np.pad(each, ((0, 0), (0, most - each.shape[1])), constant_values=none) for each in chosen])
