"""HitsFirst: runs the experts of a layer that are on the device while the host learns which are missing.

A layer runs in this order. The device routes. The router's choices are copied to the host on a stream of their own, and
meanwhile the device runs those choices whose experts a table of slots has. The host waits for the choices alone, leases
their experts, and runs the missing ones as they come. Then the device adds each token's results in top-k order, so it
changes no bit which experts were missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from server.kernels.backend import PartialRun, Rooms, TableBackend
from server.kernels.upload import upload
from server.model.experts.expert_layer import ExpertLayer
from server.model.experts.host_compute import HostCompute
from server.model.experts.step_experts import StepExperts
from server.model.experts.strategies.choice_reader import ChoiceReader
from server.model.experts.strategies.slot_tables import SlotTables
from server.model.experts.strategies.strategy import ExpertStrategy

IntArray = npt.NDArray[np.int64]

MOST_KEPT_ROWS = 256  # of steps whose buffers are kept; beyond them only pieces of prompts go


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


class HitsFirst(ExpertStrategy):
    """Runs the layers of a step some of whose experts may be missing.

    Args:
        tables: of the layers, all of whose backends are ``TableBackend``.
        host: computes missed experts for which the device has no slot; None if all are copied there.
    """

    def __init__(self, experts: StepExperts, tables: SlotTables, reader: ChoiceReader, host: HostCompute | None = None):
        super().__init__(experts)
        self._store, self._tables, self._reader, self._host = experts.store, tables, reader, host
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

    def run_layer(
        self, layer: ExpertLayer, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        assert isinstance(layer.backend, TableBackend)
        chosen, arena = top_k_index.contiguous(), self._store.arena(layer.number)
        rooms = self._reader.rooms if len(chosen) <= MOST_KEPT_ROWS else Rooms()
        rows = rooms.take("rows", hidden_states, hidden_states.shape, hidden_states.dtype)
        before = None
        if self._cut is None:
            self._read(hidden_states, chosen, top_k_weights)
        else:
            hidden_states = rows.copy_(hidden_states)
            before = self._cut()
        part = layer.backend.begin(hidden_states, chosen, top_k_weights, len(layer.keys), rooms=rooms)
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
        self._read(segment.hidden_states, segment.chosen, segment.weights)
        self._run(segment)

    def _read(self, hidden_states: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> None:
        """Begin to read what the host needs to know of a layer."""
        self._reader.begin(chosen, *(() if self._host is None else (hidden_states, weights)))

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
            found, *rows = self._reader.end()
            chosen: IntArray = found.numpy().copy()
            are_run = {layer.keys[expert] for expert in np.flatnonzero(slots >= 0).tolist()}
            with self.experts.leased(
                layer,
                chosen,
                segment.hidden_states,
                segment.weights,
                after=hold,
                uses_host=self._host is not None,
                observed_in=self._reader.in_stream(),
            ) as (_, lease):
                on_host = lease.on_host()
                if self._host is not None and on_host is not None:
                    choices, products = self._host.run(layer, on_host, chosen, *rows)
                    part.put(upload(choices, arena.device), upload(products, arena.device))
                for ready in lease.batches():
                    self.experts.request()
                    missing = ready.without(are_run)
                    if missing.keys:
                        table = np.full(len(layer.keys), -1, np.int32)
                        table[[key.expert for key in missing.keys]] = missing.slots
                        part.run_slots(upload(table, arena.device), missing.arena)
