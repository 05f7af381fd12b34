"""StepExperts: leases and holds the routed experts of a step."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from expert_store import ExpertKey, ExpertStore, Lease, Phase, Prefetcher, StepLease
from expert_store.layer_hold import LayerHold
from expert_store.prefetching.prefetcher import ReadAhead
from server.kernels.backend import SortedRows
from server.kernels.expert import ExpertsModule
from server.kernels.low_rank import ExpertAdditions
from server.model.experts.expert_layer import ExpertLayer
from server.model.experts.next_layer_gate import GateInput
from server.model.experts.sorted_choices import sort_choices
from server.model.experts.step_hold import StepHold
from server.model.experts.step_record import LeaseCost, StepRecord
from server.model.experts.step_variants import StepVariants

IntArray = npt.NDArray[np.int64]

NOTHING = nullcontext()


class RunGiven(Protocol):
    """Runs some of the chosen experts of a layer."""

    def __call__(self, places: array[int], slots: array[int], are_last: bool) -> None:
        """Run them.

        Args:
            places: of the experts, int32.
            slots: the address of each one's slot, uint64.
            are_last: whether these are the last ones.
        """


@dataclass(frozen=True)
class PlacedChoices:
    """The experts that a layer has chosen for the rows of a step.

    Args:
        chosen: ``(rows, k)``, places in ``keys``; those beyond are not experts.
        routed: the same by the numbers of experts.
        numbers: the number of each place; None if they are the same.
        place_of: the place of each chosen expert.
        rows: of each chosen expert.
    """

    layer: ExpertLayer
    chosen: IntArray
    routed: IntArray
    keys: tuple[ExpertKey, ...]
    numbers: IntArray | None
    place_of: Mapping[ExpertKey, int]
    rows: Mapping[ExpertKey, int]


class ExpertAdapters(Protocol):
    """The adapters of a step, as experts know them (``server.model.adapters.step_adapters``)."""

    def for_experts(self, layer: ExpertLayer, num_rows: int) -> ExpertAdditions | None:
        """Return what they add to the experts of a layer of so many rows; None if that is nothing."""


class StepExperts:
    """Leases or holds the experts of all layers in one step, and records what they cost.

    Native layers ask it for experts themselves; modules do so through an ``ExpertStrategy``.

    Args:
        layers: the result of ``expert_layers``.
        prefetcher: observes each layer's choices once the layer's own reads are under way. Between experts it asks
            again for the next layer's experts, if the disk has time for them.
        stream: the same, where nothing is learnt: for a model that uses every expert, or a piece of a prompt.
        variants: the variants that sequences use; None if none does.
        adapters: of the step, if it has any.
    """

    def __init__(
        self,
        store: ExpertStore,
        layers: Mapping[ExpertsModule, ExpertLayer],
        phase: Phase,
        prefetcher: Prefetcher | None = None,
        *,
        stream: ReadAhead | None = None,
        variants: StepVariants | None = None,
        adapters: ExpertAdapters | None = None,
    ):
        self.store, self.layers, self.phase = store, layers, phase
        self.variants, self.adapters = variants, adapters
        self.record = StepRecord()
        self._prefetcher, self._ahead = prefetcher, prefetcher or stream

    @contextmanager
    def leased(
        self,
        layer: ExpertLayer,
        chosen: IntArray,
        hidden_states: torch.Tensor,
        weights: torch.Tensor,
        *,
        after: LayerHold | None = None,
        uses_host: bool = False,
        observed_in: AbstractContextManager[object] = NOTHING,
    ) -> Iterator[tuple[SortedRows, Lease]]:
        """Sort a layer's rows by expert and lease the experts; record the layer after it has run.

        Args:
            after, uses_host: see ``ExpertStore.lease``.
            observed_in: entered while the prefetcher observes the layer.
        """
        chosen, keys, numbers = self._placed(layer, chosen)
        routed = chosen if numbers is None else numbers[chosen]
        self.record.note_chosen(layer.number, routed)
        order, spans = sort_choices(chosen, keys)
        additions = None if self.adapters is None else self.adapters.for_experts(layer, len(chosen))
        rows = SortedRows(hidden_states, weights, order, spans, additions)
        wanted = {key: end - start for key, (start, end) in spans.items()}
        with self.store.lease(wanted, self.phase, after, uses_host=uses_host) as lease:
            if self._ahead is not None:
                with observed_in:
                    self._observe(layer, routed, hidden_states)
            yield rows, lease
        cost = LeaseCost.of(lease)
        self.record.add(layer.number, chosen, keys, cost, catalog=self.store.catalog, numbers=numbers)

    def run_chosen(
        self,
        layer: ExpertLayer,
        hidden_states: torch.Tensor | None,
        chosen: IntArray,
        rows: Mapping[int, int] | None,
        run: RunGiven,
        *,
        predicted: IntArray | None = None,
    ) -> None:
        """Lease the experts that a layer has chosen, for a caller that runs them.

        Args:
            hidden_states: ``(tokens, hidden)``; needed if experts are asked for ahead (``asks_ahead``).
            chosen: ``(tokens, k)``, each a row of the token's router.
            rows: see ``place``.
            run: called with those that are ready, each once.
            predicted: what the next layer's router chooses on these rows, if ``asked_ranks`` were asked for.
        """
        placed = self.place(layer, chosen, rows)
        num_left = len(placed.rows)
        with self.store.lease(placed.rows, self.phase) as lease:
            if self._ahead is not None:
                self._observe(layer, placed.routed, hidden_states, predicted)
            for ready in lease.batches():
                self.request()
                num_left -= len(ready.keys)
                run(array("i", [placed.place_of[key] for key in ready.keys]), ready.addresses, not num_left)
            if not placed.rows:
                run(array("i"), array("Q"), True)
        self.add_cost(placed, LeaseCost.of(lease))

    def place(self, layer: ExpertLayer, chosen: IntArray, rows: Mapping[int, int] | None) -> PlacedChoices:
        """Return the experts that a layer has chosen, which are recorded as chosen.

        Args:
            chosen: ``(tokens, k)``, each a row of the token's router.
            rows: of each place of an expert that was chosen; None to count them.
        """
        chosen, keys, numbers = self._placed(layer, chosen)
        routed = chosen if numbers is None else numbers[chosen]
        self.record.note_chosen(layer.number, routed)
        if rows is None:
            places, counts = np.unique(chosen[chosen < len(keys)], return_counts=True)
            rows = dict(zip(places.tolist(), counts.tolist(), strict=True))
        place_of = {keys[place]: place for place in rows}
        return PlacedChoices(
            layer, chosen, routed, keys, numbers, place_of, {keys[place]: count for place, count in rows.items()}
        )

    def add_cost(self, placed: PlacedChoices, cost: LeaseCost) -> None:
        """Record what the experts of a layer have cost, after it has run."""
        self.record.add(
            placed.layer.number, placed.chosen, placed.keys, cost, catalog=self.store.catalog, numbers=placed.numbers
        )

    @property
    def asks_ahead(self) -> bool:
        """True if experts of the next layer are asked for while a layer with a lease of its own runs."""
        return self._ahead is not None

    @property
    def predicts(self) -> bool:
        """True if each layer's choices are predicted from the layer before, by the next layer's router."""
        return self._prefetcher is not None and self._prefetcher.observes and self._prefetcher.has_gates

    def asked_ranks(self, layers: Sequence[int]) -> list[int]:
        """Return which predictions of each layer are to be in memory (``Prefetcher.asked_ranks``)."""
        assert self._prefetcher is not None
        return [self._prefetcher.asked_ranks(layer) for layer in layers]

    def numbers_of(self, layer: int, rows: IntArray) -> IntArray:
        """Return the numbers of the experts that rows of each token's router stand for, ``(tokens, k)``."""
        return rows if self.variants is None else self.variants.numbers_of(layer, rows)

    def request(self) -> None:
        """Ask for experts that were predicted of the next layer that runs, while nothing is held."""
        if self._ahead is not None:
            self._ahead.request()

    def hold_residents(self) -> StepHold | None:
        """Lease all experts that are in memory; None if each layer has to lease its own.

        A step that ``predicts`` takes the hold, too: it ends before a layer whose successor needs a read, so that this
        read finds a slot.
        """
        keys = None if self.variants is None else self.variants.keys
        observes = self._prefetcher is not None and self._prefetcher.observes
        lease = self.store.hold_residents(keys, needs_all=observes and not self.predicts)
        if lease is None:
            return None
        return StepHold(lease, self.phase, self.record, self.variants, self._prefetcher, catalog=self.store.catalog)

    def hold_all(self, *, overlaps: bool = False) -> StepLease | None:
        """Lease the model's own experts if all are in memory; see ``ExpertStore.hold_residents``."""
        return self.store.hold_residents(needs_all=True, overlaps=overlaps)

    def residents(self, lease: StepLease) -> StepHold:
        """Return what records the layers that have run under a lease of ``hold_all``."""
        return StepHold(lease, self.phase, self.record, catalog=self.store.catalog)

    def _placed(self, layer: ExpertLayer, chosen: IntArray) -> tuple[IntArray, tuple[ExpertKey, ...], IntArray | None]:
        """Return the places of chosen rows of a layer's router, and the expert and the number of each place.

        Places are numbers where no sequence has a variant; None is returned instead of these then.
        """
        if self.variants is None:
            return chosen, layer.keys, None
        places = self.variants.places(layer)
        return places.place(chosen, self.variants.sets_of_rows(layer.number, len(chosen))), places.keys, places.numbers

    def _observe(
        self,
        layer: ExpertLayer,
        routed: IntArray,
        hidden_states: torch.Tensor | None,
        predicted: IntArray | None = None,
    ) -> None:
        """Let the prefetcher observe a layer, whose own reads are under way."""
        assert self._ahead is not None
        keys_of = None if self.variants is None else self.variants.keys_of_rows(layer.number, len(routed))
        self._ahead.observe(layer.number, routed, GateInput(hidden_states, self.variants, predicted), keys_of)
