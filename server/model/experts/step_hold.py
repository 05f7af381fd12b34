"""StepHold: the experts of a model that are in memory, for some layers of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from expert_store import ExpertCatalog, ExpertKey, Phase, Prefetcher, StepLease
from server.model.experts.expert_layer import ExpertLayer
from server.model.experts.next_layer_gate import GateInput
from server.model.experts.step_record import ResidentRuns, StepRecord
from server.model.experts.step_variants import StepVariants

IntArray = npt.NDArray[np.int64]


def slots_of(lease: StepLease, layers: Sequence[int]) -> npt.NDArray[np.uint64]:
    """Return the address of each place's slot, ``(layers, places)``; 0 where no expert is resident.

    It is the store's own table if the layers are in its order, and else a copy.
    """
    if lease.layers == layers:
        return lease.addresses
    return lease.addresses[[lease.layers.index(number) for number in layers]]


class RoutedLayers:
    """Some layers with experts, which are described once for many steps."""

    def __init__(self, layers: Sequence[ExpertLayer]):
        self.layers = layers
        self.numbers = [layer.number for layer in layers]
        self.sizes = [(layer.number, len(layer.keys)) for layer in layers]  # numbers, and experts of each


class StepHold:
    """A context manager that holds the resident experts under one lease (``ExpertStore.hold_residents``).

    Args:
        prefetcher: learns the number of look-ups, if not all experts are resident.
        catalog: has the bytes that are read for an expert.
    """

    def __init__(
        self,
        lease: StepLease,
        phase: Phase,
        record: StepRecord,
        variants: StepVariants | None = None,
        prefetcher: Prefetcher | None = None,
        *,
        catalog: ExpertCatalog,
    ):
        self.lease, self._phase, self._record, self._variants = lease, phase, record, variants
        self._prefetcher, self._catalog = prefetcher, catalog

    def __enter__(self) -> Self:
        self.lease.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.lease.__exit__(kind, error, traceback)

    def cancel(self) -> None:
        """End the lease, if it is not finished yet; nothing is counted."""
        self.lease.__exit__(None, None, None)

    @property
    def version(self) -> int:
        """Another number once an expert has moved."""
        return self.lease.version

    def slots_of(self, layer: int) -> IntArray:
        """Return the slot of each place of a layer in ``arena``, -1 where no expert is resident."""
        return self.lease.slots(layer)

    def arena(self, layer: int) -> torch.Tensor:
        """Return the slots of a layer's experts, uint8 ``(slots, slot_bytes)``."""
        return self.lease.arena(layer)

    def finish(
        self,
        layers: RoutedLayers,
        chosen: Callable[[], Sequence[IntArray]],
        num_choices: int,
        rows: IntArray,
        predicted: Sequence[IntArray | None] | None = None,
    ) -> None:
        """End the lease, and record what the layers used that ran under it.

        Args:
            layers: in the order in which they ran.
            chosen: returns the choices of each layer, ``(tokens, k)``, each a row of the token's router.
            num_choices: choices of a token in all layers.
            rows: tokens that each place ran on, ``(layers, places)``; 0 where a layer has fewer places. They are kept.
            predicted: for each layer, the numbers of experts that were predicted of the next one (None after the last),
                if the prefetcher observes this step.
        """
        read_ahead = self._places_of(self.lease.close(layers.numbers, rows, self._phase))
        runs = self._runs(layers, chosen, num_choices, rows, read_ahead)
        self._record.add_residents(runs)
        if predicted is not None:
            self._observe(runs, predicted)
        elif self._prefetcher is not None and not self.lease.holds_all:
            self._prefetcher.count_lookups(runs.num_lookups)

    @property
    def holds_all(self) -> bool:
        """True if every expert is resident, so that there is nothing to predict."""
        return self.lease.holds_all

    def _observe(self, residents: ResidentRuns, predicted: Sequence[IntArray | None]) -> None:
        """Let the prefetcher observe the layers in the order in which they ran."""
        assert self._prefetcher is not None
        for run, ahead in zip(residents.runs, predicted, strict=True):
            routed = run.chosen if run.numbers is None else run.numbers[run.chosen]
            keys_of = None if self._variants is None else self._variants.keys_of_rows(run.layer, len(routed))
            self._prefetcher.observe(run.layer, routed, GateInput(None, self._variants, ahead), keys_of)

    def _places_of(self, keys: Iterable[ExpertKey]) -> dict[int, dict[int, int]]:
        """Return the places of experts, by layer, and the bytes that are read for each."""
        found: dict[int, dict[int, int]] = {}
        for key in keys:
            place = key.expert if self._variants is None else self._variants.keys[key.layer].index(key)
            found.setdefault(key.layer, {})[place] = self._catalog.read_bytes(key)
        return found

    def _runs(
        self,
        layers: RoutedLayers,
        chosen: Callable[[], Sequence[IntArray]],
        num_choices: int,
        rows: IntArray,
        read_ahead: Mapping[int, Mapping[int, int]],
    ) -> ResidentRuns:
        variants = self._variants
        if variants is None:
            return ResidentRuns(layers.sizes, chosen, num_choices, rows, read_ahead=read_ahead)
        places, own = [variants.places(layer) for layer in layers.layers], chosen()
        sets = [variants.sets_of_rows(number, len(rows)) for number, rows in zip(layers.numbers, own, strict=True)]
        placed = [each.place(rows, of) for each, rows, of in zip(places, own, sets, strict=True)]
        sizes = [(number, len(each.keys)) for number, each in zip(layers.numbers, places, strict=True)]
        numbers = [each.numbers for each in places]
        return ResidentRuns(sizes, lambda: placed, num_choices, rows, numbers, read_ahead=read_ahead)
