"""StepRecord: the experts that a step used, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from expert_store import ExpertCatalog, Lease
from server.model.experts.expert_layer import ExpertLayer
from server.model.experts.stalls import Stall
from server.model.step import ExpertCost

IntArray = npt.NDArray[np.int64]


class LayerRun(NamedTuple):
    """The experts of one layer in a step."""

    layer: int
    chosen: IntArray  # (rows, k); numbers from ``num_experts`` on are not experts
    num_experts: int
    cost: ExpertCost
    missed: Mapping[int, int]  # experts that were in no tier, and the bytes read for each


class StepRecord:
    """Choices, costs and stalls of all layers of experts in a step, in the order in which the layers ran."""

    def __init__(self) -> None:
        self.routing: dict[int, IntArray] = {}  # by layer (tokens, k)
        self.runs: list[LayerRun] = []
        self.cost = ExpertCost()
        self.stalls: list[Stall] = []

    def add(self, layer: ExpertLayer, chosen: IntArray, lease: Lease, catalog: ExpertCatalog) -> None:
        """Record a layer that ran under a lease of its own, which has ended."""
        missed = {key.expert: catalog.read_bytes(key) for key in lease.missed}
        cost = ExpertCost(lease.num_lookups, len(missed), lease.stall_seconds, sum(missed.values()))
        self.runs.append(LayerRun(layer.number, chosen, len(layer.keys), cost, missed))
        self.cost.add(cost)
        if cost.stall_seconds:
            self.stalls.append(
                Stall(
                    layer.number,
                    lease.stalled_from,
                    lease.stalled_to,
                    cost.stall_seconds,
                    cost.num_misses,
                    cost.bytes_read,
                )
            )

    def add_residents(self, layers: Sequence[ExpertLayer], chosen: Sequence[IntArray], rows: IntArray) -> None:
        """Record layers whose experts were all resident, so that nothing was missed.

        Args:
            chosen: of each layer, ``(tokens, k)``, each an expert.
            rows: tokens that each expert ran on, ``(layers, experts)``.
        """
        num_lookups = np.count_nonzero(rows, axis=1).tolist()
        for layer, choices, count in zip(layers, chosen, num_lookups, strict=True):
            self.routing[layer.number] = choices
            self.runs.append(LayerRun(layer.number, choices, len(layer.keys), ExpertCost(count), {}))
        self.cost.num_lookups += sum(num_lookups)
