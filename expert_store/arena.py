"""Equal slots for experts of one layout, in one allocation."""

from __future__ import annotations

from typing import Any

import torch

from .catalog import ExpertLayout
from .errors import BudgetError


class Arena:
    """``num_slots`` slots of one layout; a slot's tensors are views that live as long as the arena.

    Raises:
        BudgetError: the memory could not be allocated.
    """

    def __init__(self, layout: ExpertLayout, num_slots: int):
        self.layout = layout
        self.num_slots = num_slots
        try:
            self._bytes = torch.empty((num_slots, layout.slot_bytes), dtype=torch.uint8)
        except RuntimeError as error:
            nbytes = num_slots * layout.slot_bytes
            raise BudgetError(f"cannot allocate {nbytes} bytes for experts; give a smaller budget") from error
        self._views = [self._slot_views(slot) for slot in range(num_slots)]

    @property
    def nbytes(self) -> int:
        return self._bytes.numel()

    def weights(self, slot: int) -> dict[str, torch.Tensor]:
        """The tensors of a slot by parameter name."""
        return self._views[slot]

    def buffer(self, slot: int, parameter: str) -> memoryview:
        """The writable bytes of one tensor of a slot."""
        view = self._views[slot][parameter]
        offset = self.layout.offsets[parameter]
        nbytes = view.numel() * view.element_size()
        return bytes_of(self._bytes[slot, offset : offset + nbytes])

    def _slot_views(self, slot: int) -> dict[str, torch.Tensor]:
        views = {}
        for parameter in self.layout.parameters:
            offset = self.layout.offsets[parameter.name]
            raw = self._bytes[slot, offset : offset + parameter.nbytes]
            views[parameter.name] = raw.view(parameter.dtype).view(parameter.shape)
        return views


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The writable bytes of a contiguous uint8 tensor in CPU memory."""
    array: Any = tensor.numpy()
    return memoryview(array)
