"""Co-activation: counts of which experts of the next layer follow which of this one."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.integer]

HALF_LIFE = 256  # observed tokens after which a token counts half
PRIOR = 1.0  # weight in tokens of the layer's mean, beside the counts of an expert
LARGEST_UNIT = 1e6  # counts are scaled down beyond it, as float32 could no longer add old ones to new ones


class _Transition:
    """Decayed counts between one layer and the next.

    Instead of shrinking every count at each token, the unit in which new tokens are counted grows.
    """

    def __init__(self, num_experts: int, num_next: int):
        # The last row and column are for "no expert", which some models may choose.
        self._together = np.zeros((num_experts + 1, num_next + 1), np.float32)
        self._chosen = np.zeros(num_experts + 1, np.float32)
        self._next = np.zeros(num_next + 1, np.float32)
        self._tokens = 0.0
        self._unit = 1.0

    def observe(self, chosen: IntArray, following: IntArray) -> None:
        np.add.at(self._together, (chosen[:, :, None], following[:, None, :]), self._unit)
        np.add.at(self._chosen, chosen, self._unit)
        np.add.at(self._next, following, self._unit)
        self._tokens += self._unit * len(chosen)
        self._unit *= 2.0 ** (len(chosen) / HALF_LIFE)
        if self._unit > LARGEST_UNIT:
            for counts in (self._together, self._chosen, self._next):
                np.divide(counts, self._unit, out=counts)
            self._tokens /= self._unit
            self._unit = 1.0

    def scores(self, chosen: IntArray) -> npt.NDArray[np.float32]:
        """Return the sum over the chosen of P(next | chosen), drawn towards P(next), ``(next experts,)``."""
        times = np.bincount(chosen.ravel(), minlength=len(self._chosen)).astype(np.float32)
        weights = times / (self._chosen + PRIOR * self._unit)
        prior = PRIOR * self._unit * weights.sum() / max(self._tokens, self._unit)
        scores: npt.NDArray[np.float32] = weights @ self._together + prior * self._next
        return scores[:-1]


class CoactivationPredictor:
    """Learns online which experts of the next MoE layer follow which of this layer, token by token.

    The last layer is followed by the first one of the next step. The memory is one float32 table
    ``(experts, next experts)`` per layer. Not thread-safe.

    Args:
        experts_per_layer: number of experts of each MoE layer, in the order in which layers run.
    """

    def __init__(self, experts_per_layer: Mapping[int, int]):
        layers = list(experts_per_layer)
        self._num_experts = dict(experts_per_layer)
        self._transitions = {
            layer: _Transition(experts_per_layer[layer], experts_per_layer[following])
            for layer, following in pairwise([*layers, layers[0]])
        }
        self._previous: tuple[int, IntArray] | None = None
        self._before = {following: layer for layer, following in pairwise([*layers, layers[0]])}

    def observe(self, layer: int, top_k_index: IntArray) -> None:
        """Learn from the choices of a layer, ``(tokens, k)``; tokens are those of the layer before, in the same order.

        Nothing is learnt where the number of tokens differs, as when a sequence joined or left between steps.
        """
        chosen = np.minimum(top_k_index, self._num_experts[layer])
        previous, self._previous = self._previous, (layer, chosen)
        if previous is None or previous[0] != self._before[layer] or len(previous[1]) != len(chosen):
            return
        self._transitions[previous[0]].observe(previous[1], chosen)

    def interrupt(self) -> None:
        """Note that the next observation does not follow the last one."""
        self._previous = None

    def predict(self, layer: int, chosen: IntArray, count: int) -> list[int]:
        """Return the ``count`` most likely experts of the layer after ``layer``, most likely first.

        Args:
            chosen: the choices of ``layer``, ``(tokens, k)``.
            count: number of experts; fewer are returned if the layer has fewer.
        """
        scores = self._transitions[layer].scores(np.minimum(chosen, self._num_experts[layer]))
        best: list[int] = np.argsort(-scores, kind="stable")[:count].tolist()
        return best
