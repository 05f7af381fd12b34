"""StepRecord: the experts that a step used, and what they cost."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from expert_store import ExpertCatalog, ExpertKey, Lease
from server.model.stalls import Stall
from server.model.step import ExpertCost

IntArray = npt.NDArray[np.int64]


class LayerRun(NamedTuple):
    """The experts of one layer in a step."""

    layer: int
    chosen: IntArray  # (rows, k), places of experts; those from ``num_experts`` on are not experts
    num_experts: int
    cost: ExpertCost
    missed: Mapping[int, int]  # places of experts that were in no tier, and the bytes read for each
    numbers: IntArray | None = None  # the expert's number of each place; None if they are the same
    remote: Collection[int] = ()  # of the missed places, those whose experts were on no disk


class StepRecord:
    """Choices, costs and stalls of all layers of experts in a step, in the order in which the layers ran."""

    def __init__(self) -> None:
        self.routing: dict[int, IntArray] = {}  # by layer (tokens, k)
        self.runs: list[LayerRun] = []
        self.cost = ExpertCost()
        self.stalls: list[Stall] = []

    def add(
        self,
        layer: int,
        chosen: IntArray,
        keys: Sequence[ExpertKey],
        lease: Lease,
        *,
        catalog: ExpertCatalog,
        numbers: IntArray | None = None,
    ) -> None:
        """Record a layer that ran under a lease of its own, which has ended.

        Args:
            chosen: ``(rows, k)``, places in ``keys``.
            numbers: see ``LayerRun``.
        """
        missed = {keys.index(key): catalog.read_bytes(key) for key in lease.missed}
        remote = [keys.index(key) for key, is_far in lease.missed.items() if is_far]
        cost = ExpertCost(lease.num_lookups, len(missed), lease.stall_seconds, sum(missed.values()))
        cost.remote_bytes = sum(missed[place] for place in remote)
        self.runs.append(LayerRun(layer, chosen, len(keys), cost, missed, numbers, remote))
        self.cost.add(cost)
        if cost.stall_seconds:
            self.stalls.append(
                Stall(
                    layer,
                    lease.stalled_from,
                    lease.stalled_to,
                    cost.stall_seconds,
                    cost.num_misses,
                    cost.bytes_read,
                )
            )

    def add_residents(
        self,
        layers: Sequence[tuple[int, int]],
        chosen: Sequence[IntArray],
        rows: IntArray,
        numbers: Sequence[IntArray] | None = None,
    ) -> None:
        """Record layers whose experts were all resident, so that nothing was missed.

        Args:
            layers: number and number of places of each.
            chosen: of each layer, ``(tokens, k)``, each a place.
            rows: tokens that each place ran on, ``(layers, places)``.
            numbers: see ``LayerRun``, of each layer.
        """
        num_lookups = np.count_nonzero(rows, axis=1).tolist()
        of_layers = [None] * len(layers) if numbers is None else numbers
        for (layer, size), choices, count, own in zip(layers, chosen, num_lookups, of_layers, strict=True):
            self.routing[layer] = choices if own is None else own[choices]
            self.runs.append(LayerRun(layer, choices, size, ExpertCost(count), {}, own))
        self.cost.num_lookups += sum(num_lookups)
