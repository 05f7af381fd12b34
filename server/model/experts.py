"""The routed experts of a step, from the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from expert_store import ExpertCatalog, ExpertKey, ExpertLayout, ExpertStore, Lease, Phase, Prefetcher, StepLease
from server.kernels.backend import ExpertBackend, SortedRows
from server.kernels.choice import choose_backend
from server.kernels.expert import ExpertsModule
from server.kernels.native.backend import NativeBackend
from server.kernels.pool import ComputePool

from .routing import LayerRun
from .stalls import Stall
from .step import ExpertCost

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ExpertLayer:
    """One layer of experts, and what is the same for it in every step."""

    number: int
    keys: tuple[ExpertKey, ...]
    layout: ExpertLayout
    backend: ExpertBackend


def expert_layers(
    layers: Mapping[ExpertsModule, int], catalog: ExpertCatalog, pool: ComputePool
) -> dict[ExpertsModule, ExpertLayer]:
    """The layers of a model's experts modules, each with the backend that runs it."""
    return {
        module: ExpertLayer(
            number,
            tuple(ExpertKey(number, expert) for expert in range(module.num_experts)),
            catalog.layout(number),
            choose_backend(module, catalog.layout(number), pool),
        )
        for module, number in layers.items()
    }


class StepExperts:
    """The experts of all layers in one step, and what of them is worth knowing afterwards.

    Args:
        layers: what ``expert_layers`` made.
        prefetcher: is told what was chosen once a layer's own reads are under way, and between experts it asks again
            for the next layer's, if the disk has time for them.
    """

    def __init__(
        self,
        store: ExpertStore,
        layers: Mapping[ExpertsModule, ExpertLayer],
        phase: Phase,
        prefetcher: Prefetcher | None = None,
    ):
        self._store, self._layers, self._phase = store, layers, phase
        self._prefetcher = prefetcher
        self._between = _nothing if prefetcher is None else prefetcher.ask
        self.cost = ExpertCost()
        self.routing: dict[int, IntArray] = {}  # by layer (tokens, k)
        self.runs: list[LayerRun] = []
        self.stalls: list[Stall] = []

    def run(
        self, module: ExpertsModule, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Each token through its k experts, weighted and summed: ``(tokens, hidden)``.

        Choices beyond the last expert (some models route to "no expert") add nothing.

        Args:
            hidden_states: ``(tokens, hidden)``.
            top_k_index: ``(tokens, k)``, integer.
            top_k_weights: ``(tokens, k)``.
        """
        layer = self._layers[module]
        chosen = self.routing[layer.number] = top_k_index.cpu().numpy()
        if not len(chosen):  # a step of nothing but an image has none for the text's experts, where it has its own
            return torch.zeros_like(hidden_states)
        order, spans = sort_choices(chosen, layer.keys)
        rows = SortedRows(hidden_states, top_k_weights, order, spans)
        with self._lease(layer, chosen, rows) as lease:
            output = layer.backend.run(module, layer.layout, rows, lease.batches(), self._between)
        self._note(layer, chosen, lease)
        return output

    def compute(
        self,
        layer: ExpertLayer,
        hidden_states: torch.Tensor,
        chosen: IntArray,
        weights: torch.Tensor,
        *,
        is_exact: bool,
    ) -> int:
        """Run each choice's expert by the native kernels, without the router's weights.

        Args:
            hidden_states: float32 ``(tokens, hidden)``.
            chosen: ``(tokens, k)``, every one an expert.
            weights: of the router, ``(tokens, k)``.
            is_exact: whether rows are never rounded before a product.

        Returns:
            The address of the outputs, float32 ``(tokens * k, hidden)``, valid until the next layer is computed.
        """
        assert isinstance(layer.backend, NativeBackend)
        self.routing[layer.number] = chosen
        order, spans = sort_choices(chosen, layer.keys)
        rows = SortedRows(hidden_states, weights, order, spans)
        with self._lease(layer, chosen, rows) as lease:
            outputs = layer.backend.compute(rows, lease.batches(), self._between, is_exact=is_exact)
        self._note(layer, chosen, lease)
        return outputs

    def hold_residents(self) -> StepLease | None:
        """A lease of all experts for this step; None unless all are in memory (``ExpertStore.hold_residents``)."""
        return self._store.hold_residents()

    def note_residents(
        self, layers: Sequence[ExpertLayer], chosen: Sequence[IntArray], rows: IntArray, lease: StepLease
    ) -> None:
        """End the lease of a step whose experts were all resident, and note what it chose.

        Args:
            layers: in the order in which they ran.
            chosen: of each, ``(tokens, k)``, every one an expert.
            rows: of each expert, ``(layers, experts)``; 0 where a layer has fewer experts.
        """
        num_lookups = np.count_nonzero(rows, axis=1).tolist()
        for layer, choices, count in zip(layers, chosen, num_lookups, strict=True):
            self.routing[layer.number] = choices
            self.runs.append(LayerRun(layer.number, choices, len(layer.keys), ExpertCost(count), {}))
        self.cost.num_lookups += sum(num_lookups)
        counts = {layer.number: row[: len(layer.keys)] for layer, row in zip(layers, rows, strict=True)}
        lease.close(counts, self._phase)

    @contextmanager
    def _lease(self, layer: ExpertLayer, chosen: IntArray, rows: SortedRows) -> Iterator[Lease]:
        wanted = {key: end - start for key, (start, end) in rows.spans.items()}
        with self._store.lease(wanted, self._phase) as lease:
            if self._prefetcher is not None:
                self._prefetcher.observe(layer.number, chosen, rows.hidden_states)
            yield lease

    def _note(self, layer: ExpertLayer, chosen: IntArray, lease: Lease) -> None:
        missed = {key.expert: self._store.catalog.read_bytes(key) for key in lease.missed}
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


def sort_choices(chosen: IntArray, keys: tuple[ExpertKey, ...]) -> tuple[IntArray, dict[ExpertKey, tuple[int, int]]]:
    """The order of choices by expert, and where each expert's lie in it (``SortedRows``).

    Args:
        chosen: ``(tokens, k)``, the number of an expert each; numbers from ``len(keys)`` on are no expert.
        keys: the layer's experts.
    """
    choices = chosen.ravel()
    order = choices.astype(np.int16).argsort(kind="stable")  # numpy sorts these by radix, several times as fast
    counts = np.bincount(choices, minlength=len(keys))[: len(keys)]
    experts = counts.nonzero()[0]
    spans, start = {}, 0
    for expert, end in zip(experts.tolist(), counts[experts].cumsum().tolist(), strict=True):
        spans[keys[expert]] = (start, end)
        start = end
    return order, spans


def _nothing() -> None:
    """There is no prefetcher."""
