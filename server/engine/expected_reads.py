"""ExpectedReads: the bytes of experts that tokens of prompts will probably read."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from expert_store import ExpertKey, ExpertStore


class ExpectedReads:
    """Estimates bytes as if routing were even, and each layer had its share of the experts in memory.

    Args:
        top_k: experts of a token in each layer.
    """

    def __init__(self, store: ExpertStore, top_k: int):
        layers = store.catalog.layers
        self._store, self._layers = store, list(layers)
        self._num_experts = np.array([len(entry.experts) for entry in layers.values()], dtype=np.float64)
        self._bytes_each = np.array(
            [store.catalog.read_bytes(ExpertKey(layer, 0)) for layer in layers], dtype=np.float64
        )
        self._unused = 1 - np.minimum(1.0, top_k / self._num_experts)  # part of a layer that one token does not use

    def __call__(self, num_tokens: int) -> float:
        """Return the bytes that one step with so many tokens reads."""
        return float((self._missing_bytes() * (1 - self._unused**num_tokens)).sum())

    def missing_share(self) -> float:
        """Return the part of all experts' bytes that is not in memory, 0 to 1."""
        return float(self._missing_bytes().sum() / (self._num_experts * self._bytes_each).sum())

    def _missing_bytes(self) -> npt.NDArray[np.float64]:
        """Return the bytes of each layer's experts that are not in memory."""
        residents = self._store.layer_residents()
        in_memory = np.array([residents[layer] for layer in self._layers], dtype=np.float64)
        return (self._num_experts - in_memory) * self._bytes_each
