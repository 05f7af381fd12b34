"""Planning of decode groups from the experts that sequences use. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from server.engine.admission.step_costs import StepCosts
from server.engine.admission.working_set import WorkingSets
from server.engine.scheduler import Scheduled
from server.engine.sequence import Sequence
from server.model.step import StepOutput

NEGLIGIBLE_STALL_SHARE = 0.001  # part of decode time
LOADS_PER_SLICE = 6  # a slice lasts so many times as long as loading a full cache of experts
MIN_SLICE_SECONDS, MAX_SLICE_SECONDS = 0.5, 3.0


@dataclass(frozen=True)
class DecodeGroup:
    """Sequences that decode while others are held."""

    sequences: list[Sequence]
    gain: float  # expected tokens a second over those of all sequences together
    slice_seconds: float


class GroupPlanner:
    """Learns from steps which experts sequences use and what steps cost, and plans the fastest group.

    Args:
        working_sets: expected experts of sequences.
        layer_slots: returns the expert slots of each layer, in the order of the working sets' layers, ``(layers,)``.
    """

    def __init__(self, working_sets: WorkingSets, layer_slots: Callable[[], npt.NDArray[np.int64]]):
        self._sets, self._layer_slots = working_sets, layer_slots
        self._costs = StepCosts()

    @property
    def stall_share(self) -> float:
        """Part of recent decode time in which compute waited for experts, 0 to 1."""
        return self._costs.stall_share

    def observe(self, step: AbstractSequence[Scheduled], output: StepOutput, seconds: float) -> bool:
        """Learn from a step. Return True if it is a decode step whose cost was added."""
        cost = output.experts
        if not cost.num_misses and self.stall_share < NEGLIGIBLE_STALL_SHARE:
            return False  # all experts are in memory
        if any(layer not in output.routing for layer in self._sets.layers):
            return False  # some tokens did not pass every layer: image experts, or part of an encoder's prompt
        chosen = _stack(output, self._sets.layers)
        self._sets.add(chosen)
        start = 0
        for item in step:
            use = item.sequence.expert_use = item.sequence.expert_use or self._sets.new_use()
            use.add(chosen[:, start : start + item.num_tokens])
            start += item.num_tokens
        if any(item.num_tokens > 1 for item in step):
            return False
        self._costs.add(seconds, cost.stall_seconds, cost.num_lookups, cost.num_misses)
        return True

    def plan(self, decoding: list[Sequence], candidates: list[Sequence]) -> DecodeGroup:
        """Return the group around the first candidate that promises the most tokens a second.

        Args:
            decoding: all sequences that decode.
            candidates: those of them that may be in the group.
        """
        slots = self._layer_slots()
        probabilities = self._sets.probabilities([sequence.expert_use or self._sets.new_use() for sequence in decoding])
        touched, missed = self._sets.expected(probabilities, slots)
        joint_rate = len(decoding) / self._costs.seconds(touched[-1:], missed[-1:])[0]
        probabilities = probabilities[[decoding.index(sequence) for sequence in candidates]]
        order = self._sets.by_affinity(probabilities, 0)
        touched, missed = self._sets.expected(probabilities[order], slots)
        load_seconds = self._costs.seconds_per_miss * int(slots.sum())
        slice_seconds = float(np.clip(LOADS_PER_SLICE * load_seconds, MIN_SLICE_SECONDS, MAX_SLICE_SECONDS))
        rates = np.arange(1, len(order) + 1) / self._costs.seconds(touched, missed)
        best = int(rates.argmax())
        sequences = [candidates[index] for index in sorted(order[: best + 1])]
        gain = float(rates[best] / joint_rate) * slice_seconds / (slice_seconds + load_seconds)
        return DecodeGroup(sequences, gain, slice_seconds)


def _stack(output: StepOutput, layers: AbstractSequence[int]) -> npt.NDArray[np.int64]:
    """Return the chosen experts of all layers, ``(layers, tokens, k)``, padded where a layer chooses fewer."""
    chosen = [output.routing[layer] for layer in layers]
    widths = {layer.shape[1] for layer in chosen}
    if len(widths) == 1:
        return np.stack(chosen)
    widest = max(widths)
    padding = np.iinfo(np.int64).max  # beyond the last expert, so that it counts for nothing
    return np.stack([np.pad(each, ((0, 0), (0, widest - each.shape[1])), constant_values=padding) for each in chosen])
