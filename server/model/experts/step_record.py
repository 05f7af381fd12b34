"""StepRecord: the experts that a step used, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple, Self

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
    read_ahead: Mapping[int, int] = MappingProxyType({})  # places of experts that were prefetched, and the bytes read


class ResidentRuns:
    """Layers of a step whose experts were all resident, so that nothing was missed.

    Most steps need no more of them than two sums, so the layers are told apart on demand.

    Args:
        layers: number and number of places of each.
        chosen: returns the choices of each layer, ``(tokens, k)``, each a place.
        num_choices: choices of a token in all of these layers.
        rows: tokens that each place ran on, ``(layers, places)``.
        numbers: see ``LayerRun``, of each layer.
        read_ahead: see ``LayerRun``, of layers with some.
    """

    def __init__(
        self,
        layers: Sequence[tuple[int, int]],
        chosen: Callable[[], Sequence[IntArray]],
        num_choices: int,
        rows: IntArray,
        numbers: Sequence[IntArray] | None = None,
        *,
        read_ahead: Mapping[int, Mapping[int, int]] = MappingProxyType({}),
    ):
        self._layers, self._chosen, self._rows, self._numbers = layers, chosen, rows, numbers
        self.num_choices, self.read_ahead = num_choices, read_ahead
        self.num_lookups = int(np.count_nonzero(rows))

    @property
    def bytes_read(self) -> int:
        """Bytes that were read ahead of these layers."""
        return sum(sum(each.values()) for each in self.read_ahead.values())

    @property
    def num_run(self) -> int:
        """Choices of all tokens that are experts."""
        return int(self._rows.sum())

    @cached_property
    def runs(self) -> Sequence[LayerRun]:
        """Each layer."""
        layers = self._layers
        num_lookups = np.count_nonzero(self._rows, axis=1).tolist()
        of_layers = [None] * len(layers) if self._numbers is None else self._numbers
        return [
            LayerRun(layer, choices, size, ExpertCost(count), {}, own, read_ahead=self.read_ahead.get(layer, {}))
            for (layer, size), choices, count, own in zip(layers, self._chosen(), num_lookups, of_layers, strict=True)
        ]


def runs_of(parts: Sequence[LayerRun | ResidentRuns]) -> list[LayerRun]:
    """Return each layer of the parts of a step."""
    return [run for part in parts for run in (part.runs if isinstance(part, ResidentRuns) else (part,))]


class LeaseCost(NamedTuple):
    """The cost of a lease of one layer's experts, or of a step's part of it."""

    missed: Mapping[ExpertKey, bool]  # experts that were in no tier, and whether they were on no disk either
    read_ahead: Collection[ExpertKey]  # experts that were prefetched from disk, at their first use
    num_lookups: int
    stall_seconds: float
    stalled_from: float  # ``time.monotonic``
    stalled_to: float

    @classmethod
    def of(cls, lease: Lease) -> Self:
        """Return the cost of a lease, which has ended."""
        return cls(
            lease.missed, lease.read_ahead, lease.num_lookups, lease.stall_seconds, lease.stalled_from, lease.stalled_to
        )


class StepRecord:
    """Choices, costs and stalls of all layers of experts in a step, in the order in which the layers ran."""

    def __init__(self) -> None:
        self.parts: list[LayerRun | ResidentRuns] = []
        self.cost = ExpertCost()
        self.stalls: list[Stall] = []
        self._chosen: list[tuple[int, IntArray] | ResidentRuns] = []

    @property
    def runs(self) -> list[LayerRun]:
        """Each layer that has run."""
        return runs_of(self.parts)

    @property
    def routing(self) -> dict[int, IntArray]:
        """The experts that each layer has chosen, ``(tokens, k)``."""
        found: dict[int, IntArray] = {}
        for part in self._chosen:
            if isinstance(part, ResidentRuns):
                found |= {
                    run.layer: run.chosen if run.numbers is None else run.numbers[run.chosen] for run in part.runs
                }
            else:
                found[part[0]] = part[1]
        return found

    def note_chosen(self, layer: int, chosen: IntArray) -> None:
        """Record the experts that a layer has chosen, before it runs under a lease of its own."""
        self._chosen.append((layer, chosen))

    def add(
        self,
        layer: int,
        chosen: IntArray,
        keys: Sequence[ExpertKey],
        lease: LeaseCost,
        *,
        catalog: ExpertCatalog,
        numbers: IntArray | None = None,
    ) -> None:
        """Record a layer that ran under a lease of its own, which has ended.

        Args:
            chosen: ``(rows, k)``, places in ``keys``.
            lease: the cost of the lease.
            numbers: see ``LayerRun``.
        """
        missed = {keys.index(key): catalog.read_bytes(key) for key in lease.missed}
        remote = [keys.index(key) for key, is_far in lease.missed.items() if is_far]
        cost = ExpertCost(lease.num_lookups, len(missed), lease.stall_seconds, sum(missed.values()))
        cost.remote_bytes = sum(missed[place] for place in remote)
        ahead = {keys.index(key): catalog.read_bytes(key) for key in lease.read_ahead}
        cost.bytes_read += sum(ahead.values())
        self.parts.append(LayerRun(layer, chosen, len(keys), cost, missed, numbers, remote, ahead))
        self.cost.add(cost)
        if cost.stall_seconds:
            self.stalls.append(
                Stall(
                    layer,
                    lease.stalled_from,
                    lease.stalled_to,
                    cost.stall_seconds,
                    cost.num_misses,
                    sum(missed.values()),
                )
            )

    def add_residents(self, residents: ResidentRuns) -> None:
        """Record layers whose experts were all resident."""
        self.parts.append(residents)
        self._chosen.append(residents)
        self.cost.num_lookups += residents.num_lookups
        self.cost.bytes_read += residents.bytes_read


class StepRouting(Mapping[int, IntArray]):
    """The experts that layers have chosen, ``(tokens, k)``, of those that all tokens of a step went to.

    They are looked up in the step's record when somebody asks for them.
    """

    def __init__(self, record: StepRecord, num_tokens: int):
        self._record, self._num_tokens = record, num_tokens

    @cached_property
    def _by_layer(self) -> dict[int, IntArray]:
        routing = self._record.routing.items()
        return {layer: chosen for layer, chosen in routing if len(chosen) == self._num_tokens}

    def __getitem__(self, layer: int) -> IntArray:
        return self._by_layer[layer]

    def __iter__(self) -> Iterator[int]:
        return iter(self._by_layer)

    def __len__(self) -> int:
        return len(self._by_layer)
