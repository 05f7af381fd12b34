"""WaitlessExperts: runs the experts of a step without waiting for the device, on which all of them are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from server.kernels.backend import ResidentBackend
from server.kernels.upload import upload, upload_into
from server.model.experts.expert_layer import ExpertLayer
from server.model.experts.resident_experts import ResidentExperts, RoutedLayers

IntArray = npt.NDArray[np.int64]


class SlotTables:
    """The slot of each expert on the device, int32, at the same place in all steps; -1 for none.

    Args:
        layers: of the model.
    """

    def __init__(self, layers: Sequence[ExpertLayer], device: torch.device):
        self.layers = layers
        sizes = [len(layer.keys) for layer in layers]
        self._table = upload(np.full(sum(sizes), -1, np.int32), device)
        parts = torch.split(self._table, sizes)
        self._of_layer = {layer.number: part for layer, part in zip(layers, parts, strict=True)}
        bounds = np.cumsum([0, *sizes])
        self._host = np.full(bounds[-1], -1, np.int32)  # what the table holds
        self._parts = {layer.number: slice(*pair) for layer, pair in zip(layers, pairwise(bounds), strict=True)}
        self._known: int | None = None  # the version of the addresses that are in the table

    def of(self, layer: int) -> torch.Tensor:
        return self._of_layer[layer]

    def update(self, residents: ResidentExperts) -> None:
        """Take over where experts are now, if they have moved."""
        if residents.version != self._known:
            slots = [residents.slots_of(layer.number).astype(np.int32) for layer in self.layers]
            numbers = np.concatenate(slots)
            upload_into(numbers, self._table)
            self._host, self._known = numbers, residents.version

    def update_layer(self, layer: int, slots: npt.NDArray[np.int32]) -> None:
        """Take over where the experts of one layer are now, if they have moved."""
        known = self._host[self._parts[layer]]
        if not np.array_equal(known, slots):
            self._known = None
            upload_into(slots, self._of_layer[layer])
            known[:] = slots


@dataclass(frozen=True)
class DeviceChoices:
    """The router's choices in a step, on the device.

    Args:
        layers: in the order in which they ran.
        shapes: ``(tokens, k)`` of each.
        numbers: all choices, layer after layer.
    """

    layers: Sequence[ExpertLayer]
    shapes: Sequence[tuple[int, ...]]
    numbers: torch.Tensor


class WaitlessExperts:
    """Runs layers whose experts are held, and keeps the router's choices on the device until the end of the step.

    Args:
        residents: the hold of all experts, which was entered.
        tables: of the layers.
    """

    def __init__(self, residents: ResidentExperts, tables: SlotTables):
        self._residents, self._tables = residents, tables
        self._chosen: list[tuple[ExpertLayer, torch.Tensor]] = []
        self.gathered: DeviceChoices | None = None  # of layers that ran otherwise
        tables.update(residents)

    @property
    def arenas(self) -> tuple[int, ...]:
        """The addresses of the layers' arenas."""
        return tuple(self._residents.arena(layer.number).data_ptr() for layer in self._tables.layers)

    def run(
        self, layer: ExpertLayer, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Run a layer; see ``StepExperts.run``."""
        self._chosen.append((layer, top_k_index))
        if not len(top_k_index):
            return torch.zeros_like(hidden_states)
        assert isinstance(layer.backend, ResidentBackend)
        table, arena = self._tables.of(layer.number), self._residents.arena(layer.number)
        return layer.backend.run_residents(hidden_states, top_k_index, top_k_weights, table, arena)

    def gather(self) -> DeviceChoices | None:
        """Return the choices of the layers that have run; None if none has."""
        if not self._chosen:
            return None
        layers, chosen = zip(*self._chosen, strict=True)
        return DeviceChoices(layers, [each.shape for each in chosen], torch.cat([each.flatten() for each in chosen]))

    def forget(self) -> None:
        """Forget the layers that have run, as the step is run again."""
        self._chosen, self.gathered = [], None

    def finish(self) -> None:
        """Wait for the choices, end the hold, and record what was used."""
        gathered = self.gathered or self.gather()
        if gathered is None:
            return
        layers, sizes = gathered.layers, [int(np.prod(shape)) for shape in gathered.shapes]
        parts = np.split(gathered.numbers.cpu().numpy(), np.cumsum(sizes)[:-1])
        chosen = [part.reshape(shape) for part, shape in zip(parts, gathered.shapes, strict=True)]
        rows = np.zeros((len(layers), max(len(layer.keys) for layer in layers)), np.int64)
        for row, layer, part in zip(rows, layers, parts, strict=True):
            row[: len(layer.keys)] = np.bincount(part, minlength=len(layer.keys))[: len(layer.keys)]
        self._residents.finish(RoutedLayers(layers), lambda: chosen, sum(each.shape[1] for each in chosen), rows)
