"""SlotTables: where the experts of all layers are on the device."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from server.kernels.upload import upload, upload_into
from server.model.experts.expert_layer import ExpertLayer
from server.model.experts.step_hold import StepHold


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

    def update(self, residents: StepHold) -> None:
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
