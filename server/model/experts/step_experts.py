"""StepExperts: runs the routed experts of a step, which the expert store leases."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
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
from server.model.experts.hits_first import ChoiceReader, HitsFirst
from server.model.experts.host_compute import HostCompute
from server.model.experts.next_layer_gate import GateInput
from server.model.experts.resident_experts import ResidentExperts
from server.model.experts.step_record import StepRecord
from server.model.experts.step_variants import StepVariants
from server.model.experts.waitless_experts import SlotTables, WaitlessExperts

IntArray = npt.NDArray[np.int64]

FEW_CHOICES = 64  # these are sorted sooner without numpy, whose calls take long with cold caches


class RunGiven(Protocol):
    """Runs some of the chosen experts of a layer."""

    def __call__(self, places: array[int], slots: array[int], are_last: bool) -> None:
        """Run them.

        Args:
            places: of the experts, int32.
            slots: the address of each one's slot, uint64.
            are_last: whether these are the last ones.
        """


class ExpertAdapters(Protocol):
    """The adapters of a step, as experts know them (``server.model.adapters.step_adapters``)."""

    def for_experts(self, layer: ExpertLayer, num_rows: int) -> ExpertAdditions | None:
        """Return what they add to the experts of a layer of so many rows; None if that is nothing."""


class StepExperts:
    """Runs the experts of all layers in one step, and records what they cost.

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
        self._adapters = adapters
        self._store, self._layers, self.phase = store, layers, phase
        self._prefetcher, self.variants = prefetcher, variants
        self._ahead = prefetcher or stream
        self._between = _nothing if self._ahead is None else self._ahead.request
        self.record = StepRecord()
        self._waitless: WaitlessExperts | None = None
        self._hits_first: HitsFirst | None = None
        self._reader: ChoiceReader | None = None

    def run(
        self, module: ExpertsModule, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Run each token through its k experts, and return the weighted sums, ``(tokens, hidden)``.

        Choices beyond the last expert (some models route to "no expert") add nothing.

        Args:
            hidden_states: ``(tokens, hidden)``.
            top_k_index: ``(tokens, k)``, integer.
            top_k_weights: ``(tokens, k)``.
        """
        layer = self._layers[module]
        if self._waitless is not None:
            return self._waitless.run(layer, hidden_states, top_k_index, top_k_weights)
        if self._hits_first is not None and len(top_k_index):
            return self._hits_first.run(layer, hidden_states, top_k_index, top_k_weights)
        chosen = top_k_index.cpu().numpy()
        if not len(chosen):  # the text's experts in a step that holds nothing but an image with experts of its own
            self.record.note_chosen(layer.number, chosen)
            return torch.zeros_like(hidden_states)
        with self._leased(layer, chosen, hidden_states, top_k_weights) as (rows, lease):
            return layer.backend.run(rows, lease.batches(), self._between)

    def run_unweighted(
        self,
        layer: ExpertLayer,
        hidden_states: torch.Tensor,
        chosen: IntArray,
        weights: torch.Tensor,
        *,
        is_exact: bool,
    ) -> int:
        """Run each choice's expert on its row, for a caller that weights and adds the results.

        Args:
            hidden_states: float32 ``(tokens, hidden)``.
            chosen: ``(tokens, k)``, each an expert.
            weights: of the router, ``(tokens, k)``.
            is_exact: whether rows are never rounded before a product.

        Returns:
            The address of the outputs, float32 ``(tokens * k, hidden)``, valid until the next layer is computed.
        """
        if not len(chosen):  # as above
            self.record.note_chosen(layer.number, chosen)
            return 0
        with self._leased(layer, chosen, hidden_states, weights) as (rows, lease):
            return layer.backend.run_unweighted(rows, lease.batches(), self._between, is_exact=is_exact)

    def run_chosen(
        self,
        layer: ExpertLayer,
        hidden_states: torch.Tensor | None,
        chosen: IntArray,
        rows: Mapping[int, int],
        run: RunGiven,
        *,
        predicted: IntArray | None = None,
    ) -> None:
        """Lease the experts that a layer has chosen, for a caller that runs them.

        Args:
            hidden_states: ``(tokens, hidden)``; needed if experts are asked for ahead (``asks_ahead``).
            chosen: ``(tokens, k)``, each a row of the token's router.
            rows: of each place of an expert that was chosen.
            run: called with those that are ready, each once.
            predicted: what the next layer's router chooses on these rows, if ``asked_ranks`` were asked for.
        """
        chosen, keys, numbers = self._placed(layer, chosen)
        routed = chosen if numbers is None else numbers[chosen]
        self.record.note_chosen(layer.number, routed)
        place_of, num_left = {keys[place]: place for place in rows}, len(rows)
        with self._store.lease({keys[place]: count for place, count in rows.items()}, self.phase) as lease:
            if self._ahead is not None:
                self._observe(layer, routed, hidden_states, predicted)
            for ready in lease.batches():
                self._between()
                num_left -= len(ready.keys)
                run(array("i", [place_of[key] for key in ready.keys]), ready.addresses, not num_left)
            if not rows:
                run(array("i"), array("Q"), True)
        self.record.add(layer.number, chosen, keys, lease, catalog=self._store.catalog, numbers=numbers)

    @contextmanager
    def without_waits(self, tables: SlotTables | None) -> Iterator[WaitlessExperts | None]:
        """Let layers run without waiting for the device, if all experts are there; yield None if they can't.

        Args:
            tables: of layers whose backends can do so; None if one can't.
        """
        lease = None
        if tables is not None and self._adapters is None and self.variants is None:
            lease = self._store.hold_residents(needs_all=True)
        if lease is None or tables is None:
            yield None
            return
        with ResidentExperts(lease, self.phase, self.record) as residents:
            self._waitless = WaitlessExperts(residents, tables)
            yield self._waitless
            self._waitless.finish()

    def with_hits_first(
        self, tables: SlotTables | None, reader: ChoiceReader | None, host: HostCompute | None = None
    ) -> HitsFirst | None:
        """Run the experts of a layer that are on a device before it is known which are missing, from now on.

        Args:
            tables: of layers whose backends can do so; None if one can't.
            host: see ``HitsFirst``; in steps of decodes.

        Returns:
            What runs the layers; None if they can't run so.
        """
        if tables is not None and reader is not None and self._adapters is None and self.variants is None:
            self._reader = reader
            self._hits_first = HitsFirst(
                self._store,
                tables,
                reader,
                self._leased,
                between=self._between,
                host=host if self.phase == "decode" else None,
            )
        return self._hits_first

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
        self._between()

    def hold_residents(self) -> ResidentExperts | None:
        """Lease all experts that are in memory; None if each layer has to lease its own.

        A step that ``predicts`` takes the hold, too: it ends before a layer whose successor needs a read, so that this
        read finds a slot.
        """
        keys = None if self.variants is None else self.variants.keys
        observes = self._prefetcher is not None and self._prefetcher.observes
        lease = self._store.hold_residents(keys, needs_all=observes and not self.predicts)
        if lease is None:
            return None
        return ResidentExperts(lease, self.phase, self.record, self.variants, self._prefetcher)

    def hold_all(self, *, overlaps: bool = False) -> StepLease | None:
        """Lease the model's own experts if all are in memory; see ``ExpertStore.hold_residents``."""
        return self._store.hold_residents(needs_all=True, overlaps=overlaps)

    def residents(self, lease: StepLease) -> ResidentExperts:
        """Return what records the layers that have run under a lease of ``hold_all``."""
        return ResidentExperts(lease, self.phase, self.record)

    @contextmanager
    def _leased(
        self,
        layer: ExpertLayer,
        chosen: IntArray,
        hidden_states: torch.Tensor,
        weights: torch.Tensor,
        after: LayerHold | None = None,
        *,
        uses_host: bool = False,
    ) -> Iterator[tuple[SortedRows, Lease]]:
        """Sort a layer's rows by expert and lease the experts; record the layer after it has run.

        Args:
            after, uses_host: see ``ExpertStore.lease``.
        """
        chosen, keys, numbers = self._placed(layer, chosen)
        routed = chosen if numbers is None else numbers[chosen]
        self.record.note_chosen(layer.number, routed)
        order, spans = sort_choices(chosen, keys)
        additions = None if self._adapters is None else self._adapters.for_experts(layer, len(chosen))
        rows = SortedRows(hidden_states, weights, order, spans, additions)
        wanted = {key: end - start for key, (start, end) in spans.items()}
        with self._store.lease(wanted, self.phase, after, uses_host=uses_host) as lease:
            if self._ahead is not None:
                with nullcontext() if self._reader is None else self._reader.in_stream():
                    self._observe(layer, routed, hidden_states)
            yield rows, lease
        self.record.add(layer.number, chosen, keys, lease, catalog=self._store.catalog, numbers=numbers)

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


def sort_choices(chosen: IntArray, keys: tuple[ExpertKey, ...]) -> tuple[IntArray, dict[ExpertKey, tuple[int, int]]]:
    """Sort choices by expert; return their order and each expert's range in it (``SortedRows``).

    Args:
        chosen: ``(tokens, k)``, the number of an expert each; numbers from ``len(keys)`` on are not experts.
        keys: the layer's experts.
    """
    choices = chosen.ravel()
    if len(choices) <= FEW_CHOICES:
        return _sort_few(choices.tolist(), keys)
    order = choices.astype(np.int16).argsort(kind="stable")  # numpy sorts int16 by radix, several times as fast
    counts = np.bincount(choices, minlength=len(keys))[: len(keys)]
    experts = counts.nonzero()[0]
    spans, start = {}, 0
    for expert, end in zip(experts.tolist(), counts[experts].cumsum().tolist(), strict=True):
        spans[keys[expert]] = (start, end)
        start = end
    return order, spans


def _sort_few(choices: list[int], keys: tuple[ExpertKey, ...]) -> tuple[IntArray, dict[ExpertKey, tuple[int, int]]]:
    order = sorted(range(len(choices)), key=choices.__getitem__)
    spans: dict[ExpertKey, tuple[int, int]] = {}
    for place, choice in enumerate(order):
        if choices[choice] >= len(keys):
            break
        key = keys[choices[choice]]
        spans[key] = (spans[key][0] if key in spans else place, place + 1)
    return np.array(order, np.int64), spans


def _nothing() -> None:
    """Stand in for ``Prefetcher.request`` where there is no prefetcher."""
