"""Working sets: the experts that sequences are expected to use, and that a step of some of them touches. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

MEMORY_TOKENS = 64  # tokens that a sequence's past weighs as much as
PRIOR_TOKENS = 2  # tokens that the use by all sequences weighs as much as


@dataclass
class ExpertUse:
    """Decaying counts of the experts that a sequence chose."""

    counts: Floats  # (layers, experts)
    num_tokens: float = 0.0

    def add(self, chosen: npt.NDArray[np.int64]) -> None:
        """Add the choices of new tokens, ``(layers, tokens, k)``; a choice beyond the last expert is none."""
        num_layers, num_tokens, _ = chosen.shape
        keep = (1 - 1 / MEMORY_TOKENS) ** num_tokens
        num_experts = self.counts.shape[1]
        flat = chosen.reshape(num_layers, -1) + np.arange(num_layers)[:, None] * num_experts
        found = np.bincount(flat[chosen.reshape(num_layers, -1) < num_experts], minlength=self.counts.size)
        weight = MEMORY_TOKENS * (1 - keep) / num_tokens  # weight of a token; together they weigh as much as decays
        self.counts = keep * self.counts + np.float32(weight) * found.reshape(self.counts.shape).astype(np.float32)
        self.num_tokens = keep * self.num_tokens + weight * num_tokens


class WorkingSets:
    """Expected experts of sequences, from what each sequence used and what all sequences use."""

    def __init__(self, experts_per_layer: Mapping[int, int]):
        self.layers = tuple(experts_per_layer)
        self._shape = (len(self.layers), max(experts_per_layer.values()))
        self._all = ExpertUse(np.zeros(self._shape, np.float32))

    def new_use(self) -> ExpertUse:
        return ExpertUse(np.zeros(self._shape, np.float32))

    def add(self, chosen: npt.NDArray[np.int64]) -> None:
        """Add the choices of a step to what all sequences use, ``(layers, tokens, k)``."""
        self._all.add(chosen)

    def probabilities(self, uses: Sequence[ExpertUse]) -> Floats:
        """Return how likely the next token of each sequence needs each expert, ``(sequences, layers, experts)``."""
        common = self._all.counts / max(self._all.num_tokens, 1.0)
        found = [(use.counts + PRIOR_TOKENS * common) / (use.num_tokens + PRIOR_TOKENS) for use in uses]
        return np.clip(np.stack(found), 0.0, 0.999)

    @staticmethod
    def by_affinity(probabilities: Floats, first: int) -> list[int]:
        """Return the sequences ordered by how much each shares with the sequence ``first``, which comes first."""
        shared = (np.minimum(probabilities, probabilities[first])).sum((1, 2))
        shared[first] = np.inf
        return [int(index) for index in np.argsort(-shared, kind="stable")]

    @staticmethod
    def expected(probabilities: Floats, slots: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Return the experts that a step of the first 1, 2, ... sequences touches, and those no cache could hold.

        Args:
            probabilities: ``(sequences, layers, experts)``.
            slots: expert slots of each layer ``(layers,)``; they hold its most likely experts.

        Returns:
            Expected numbers of experts over all layers, ``(sequences,)`` each.
        """
        touched = 1 - np.exp(np.cumsum(np.log1p(-probabilities), 0))  # (sequences, layers, experts)
        ordered = -np.sort(-touched, axis=-1)
        is_out = np.arange(ordered.shape[-1]) >= slots[:, None]  # (layers, experts)
        return touched.sum((1, 2)), (ordered * is_out).sum((1, 2))
