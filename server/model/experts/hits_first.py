"""HitsFirst: runs the experts of a layer that are on the device while the host learns which are missing.

A layer runs in this order. The device routes. The router's choices are copied to the host on a stream of their own, and
meanwhile the device runs those choices whose experts a table of slots has. The host waits for the choices alone, leases
their experts, and runs the missing ones as they come. Then the device adds each token's results in top-k order, so it
changes no bit which experts were missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from expert_store import ExpertStore, Lease
from expert_store.layer_hold import LayerHold
from server.kernels.backend import PartialRun, ResidentBackend, SortedRows
from server.kernels.upload import upload
from server.model.experts.expert_layer import ExpertLayer
from server.model.experts.waitless_experts import SlotTables

IntArray = npt.NDArray[np.int64]


class ChoiceReader:
    """Copies small tensors to the host on a stream of its own, so that the host waits for no later compute."""

    def __init__(self, device: torch.device):
        self._device = device
        self.stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call,unused-ignore]
        self._ended: Any = torch.cuda.Event()  # type: ignore[no-untyped-call,unused-ignore]
        self._host = torch.empty(0)
        self._found = self._host

    def begin(self, tensor: torch.Tensor) -> None:
        """Begin to copy a contiguous tensor, after the compute that has been queued; it has to stay until ``end``."""
        if self._host.dtype != tensor.dtype or self._host.numel() < tensor.numel():
            self._host = torch.empty(tensor.numel(), dtype=tensor.dtype).pin_memory()
        self._found = self._host[: tensor.numel()].view(tensor.shape)
        self.stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self.stream):
            self._found.copy_(tensor, non_blocking=True)
            self._ended.record(self.stream)

    def in_stream(self) -> AbstractContextManager[Any]:
        """Return the context in which torch computes on this stream, which waits for the router alone."""
        context: AbstractContextManager[Any] = torch.cuda.stream(self.stream)
        return context

    def end(self) -> npt.NDArray[Any]:
        """Wait for the copy alone; return what it brought."""
        self._ended.synchronize()
        return self._found.numpy().copy()


class Leased(Protocol):
    """Leases the experts of a layer's choices; see ``StepExperts``."""

    def __call__(
        self,
        layer: ExpertLayer,
        chosen: IntArray,
        hidden_states: torch.Tensor,
        weights: torch.Tensor,
        after: LayerHold | None,
    ) -> AbstractContextManager[tuple[SortedRows, Lease]]: ...


@dataclass(frozen=True)
class Segment:
    """One layer of a step.

    Args:
        arena: that the experts which are there are read from.
        before: the graph of all since the layer before, up to this layer's router; None in a step without graphs.
        hits: the graph that runs the experts which are there.
    """

    layer: ExpertLayer
    hidden_states: torch.Tensor
    chosen: torch.Tensor
    weights: torch.Tensor
    arena: torch.Tensor
    run: PartialRun
    before: Any = None
    hits: Any = None


class HitsFirst:
    """Runs the layers of a step some of whose experts may be missing.

    Args:
        tables: of the layers, all of whose backends are ``ResidentBackend``.
        leased: leases what a layer has chosen, and records it.
        between: see ``ExpertBackend.run``.
    """

    def __init__(
        self,
        store: ExpertStore,
        tables: SlotTables,
        reader: ChoiceReader,
        leased: Leased,
        between: Callable[[], None],
    ):
        self._store, self._tables, self._reader = store, tables, reader
        self._leased, self._between = leased, between
        self._cut: Callable[[], Any] | None = None
        self._segments: list[Segment] = []

    @property
    def arenas(self) -> tuple[int, ...]:
        """The addresses of the layers' arenas."""
        return tuple(self._store.arena(layer.number).data_ptr() for layer in self._tables.layers)

    @contextmanager
    def captured(self, cut: Callable[[], Any]) -> Iterator[list[Segment]]:
        """Record layers instead of running them.

        Args:
            cut: ends the graph that is being captured and begins another; returns the one that has ended.

        Yields:
            The layers that have been recorded.
        """
        self._cut, self._segments = cut, []
        try:
            yield self._segments
        finally:
            self._cut = None

    def forget(self) -> None:
        """Forget the layers that have been recorded, as the step is run otherwise."""
        self._segments = []

    def run(
        self, layer: ExpertLayer, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Run a layer; see ``StepExperts.run``."""
        assert isinstance(layer.backend, ResidentBackend)
        chosen, arena = top_k_index.contiguous(), self._store.arena(layer.number)
        before = None if self._cut is None else self._cut()
        if before is None:
            self._reader.begin(chosen)
        part = layer.backend.begin(hidden_states, chosen, top_k_weights, len(layer.keys))
        segment = Segment(layer, hidden_states, chosen, top_k_weights, arena, part)
        if self._cut is None:
            self._run(segment)
        else:
            part.run_slots(self._tables.of(layer.number), arena)
            self._segments.append(replace(segment, before=before, hits=self._cut()))
        return part.finish()

    def replay(self, segment: Segment) -> None:
        """Run a recorded layer, and what comes before it."""
        segment.before.replay()
        self._reader.begin(segment.chosen)
        self._run(segment)

    def _run(self, segment: Segment) -> None:
        """Run the experts that are there, wait for the choices, and run the others."""
        layer, part, arena = segment.layer, segment.run, segment.arena
        hold = self._store.hold_layer(layer.number)
        with nullcontext() if hold is None else hold:
            slots = np.full(len(layer.keys), -1, np.int32)
            if hold is not None and hold.arena.data_ptr() == arena.data_ptr():
                slots = hold.slots
            self._tables.update_layer(layer.number, slots)
            if segment.hits is None:
                part.run_slots(self._tables.of(layer.number), arena)
            else:
                segment.hits.replay()
            chosen = self._reader.end()
            are_run = {layer.keys[expert] for expert in np.flatnonzero(slots >= 0).tolist()}
            with self._leased(layer, chosen, segment.hidden_states, segment.weights, hold) as (_, lease):
                for ready in lease.batches():
                    self._between()
                    missing = ready.without(are_run)
                    if missing.keys:
                        table = np.full(len(layer.keys), -1, np.int32)
                        table[[key.expert for key in missing.keys]] = missing.slots
                        part.run_slots(upload(table, arena.device), missing.arena)
