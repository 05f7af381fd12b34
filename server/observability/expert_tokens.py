"""Metric with a sample for every expert or layer, written without an object for each sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt

Detail = Literal["layer", "expert", "off"]

NAME = "greenroom_expert_tokens_total"
HEAD = f"# HELP {NAME} Tokens routed to an expert.\n# TYPE {NAME} counter\n"


class ExpertTokens:
    """Writes tokens by layer and expert in Prometheus' text format.

    Args:
        num_experts: number of experts of each MoE layer.
        detail: whether there is a sample for each expert, for each layer, or none.
    """

    def __init__(self, num_experts: Mapping[int, int], detail: Detail = "expert"):
        self._detail, self._layers = detail, list(num_experts)
        self._counts = list(num_experts.values())
        self._names = [
            f'{NAME}{{layer="{layer}",expert="{expert}"}} '
            for layer, count in num_experts.items()
            for expert in range(count)
            if detail == "expert"
        ]

    def render(self, tokens: npt.NDArray[np.int64]) -> bytes:
        """Return the metric for counts ``(layers, experts)``; a layer may have fewer experts than columns."""
        if self._detail == "off":
            return b""
        if self._detail == "layer":
            rows = zip(self._layers, tokens, self._counts, strict=True)
            return (
                HEAD + "".join(f'{NAME}{{layer="{layer}"}} {row[:num].sum()}\n' for layer, row, num in rows)
            ).encode()
        counts = [count for row, num in zip(tokens.tolist(), self._counts, strict=True) for count in row[:num]]
        lines = [f"{name}{count}\n" for name, count in zip(self._names, counts, strict=True)]
        return (HEAD + "".join(lines)).encode()
