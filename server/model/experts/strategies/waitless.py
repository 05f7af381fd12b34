"""WaitlessExperts: runs the experts of a step without waiting for the device, on which all of them are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from server.kernels.backend import TableBackend
from server.model.experts.expert_layer import ExpertLayer
from server.model.experts.step_experts import StepExperts
from server.model.experts.step_hold import RoutedLayers, StepHold
from server.model.experts.strategies.slot_tables import SlotTables
from server.model.experts.strategies.strategy import ExpertStrategy


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


class WaitlessExperts(ExpertStrategy):
    """Runs layers whose experts are held, and keeps the router's choices on the device until the end of the step.

    Args:
        residents: the hold of all experts, which was entered.
        tables: of the layers.
    """

    def __init__(self, experts: StepExperts, residents: StepHold, tables: SlotTables):
        super().__init__(experts)
        self._residents, self._tables = residents, tables
        self._chosen: list[tuple[ExpertLayer, torch.Tensor]] = []
        self.gathered: DeviceChoices | None = None  # of layers that ran otherwise
        tables.update(residents)

    @property
    def arenas(self) -> tuple[int, ...]:
        """The addresses of the layers' arenas."""
        return tuple(self._residents.arena(layer.number).data_ptr() for layer in self._tables.layers)

    def run_layer(
        self, layer: ExpertLayer, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        self._chosen.append((layer, top_k_index))
        assert isinstance(layer.backend, TableBackend)
        table, arena = self._tables.of(layer.number), self._residents.arena(layer.number)
        return layer.backend.run_by_table(hidden_states, top_k_index, top_k_weights, table, arena)

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
