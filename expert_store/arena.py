"""Equal slots for experts of one layout, in one allocation."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .catalog import ExpertLayout
from .errors import BudgetError

Weights = dict[str, torch.Tensor]
Bytes = npt.NDArray[np.uint8]

RESERVE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)


class HostArena:
    """Slots of one layout in CPU memory; ``num_slots`` in use at first, ``capacity`` at most.

    Addresses are reserved for all of them at once and pages come with their first use, so that slots can be given
    back to the system one by one (``retire``) and taken again without moving anything.

    Raises:
        BudgetError: the memory could not be reserved.
    """

    def __init__(self, layout: ExpertLayout, num_slots: int, capacity: int):
        self.layout = layout
        self._map = _reserve(num_slots * layout.slot_bytes, capacity * layout.slot_bytes)
        self.capacity = len(self._map) // layout.slot_bytes
        self._bytes: Bytes = np.frombuffer(self._map, dtype=np.uint8).reshape(self.capacity, layout.slot_bytes)
        self._tensor = torch.from_numpy(self._bytes)  # type: ignore[no-untyped-call,unused-ignore]
        self.address = self._bytes.ctypes.data  # of the first slot
        self._views: list[Weights | None] = [None] * self.capacity
        self._advise(0, num_slots, "MADV_HUGEPAGE")  # direct reads into huge pages are faster by a tenth to a half

    def weights(self, slot: int) -> Weights:
        """The tensors of a slot by parameter name."""
        views = self._views[slot]
        if views is None:
            views = self._views[slot] = slot_views(self.layout, self._tensor[slot])
        return views

    def bytes_of(self, slot: int) -> Bytes:
        """All bytes of a slot, writable."""
        raw: Bytes = self._bytes[slot]
        return raw

    def tensor_of(self, slot: int) -> torch.Tensor:
        """All bytes of a slot as uint8 ``(slot_bytes,)``."""
        return self._tensor[slot]

    def retire(self, slot: int) -> None:
        """Give a slot's pages back to the system."""
        self._advise(slot, 1, "MADV_NOHUGEPAGE")  # or the system may fill them up again to a huge page
        self._advise(slot, 1, "MADV_DONTNEED")

    def revive(self, slot: int) -> None:
        """A slot is going to be used that was not, or was retired."""
        self._advise(slot, 1, "MADV_HUGEPAGE")

    def _advise(self, slot: int, count: int, advice: str) -> None:
        option = getattr(mmap, advice, None)
        if option is not None:
            self._map.madvise(option, slot * self.layout.slot_bytes, count * self.layout.slot_bytes)


class DeviceArena:
    """Slots of one layout in a device's memory.

    Args:
        memory: uint8 ``(num_slots * layout.slot_bytes,)`` on the device.
    """

    def __init__(self, layout: ExpertLayout, memory: torch.Tensor):
        self.layout = layout
        self._tensor = memory.view(-1, layout.slot_bytes)
        self.address = memory.data_ptr()  # of the first slot
        self._views = [slot_views(layout, raw) for raw in self._tensor]

    def weights(self, slot: int) -> Weights:
        """The tensors of a slot by parameter name."""
        return self._views[slot]

    def tensor_of(self, slot: int) -> torch.Tensor:
        """All bytes of a slot as uint8 ``(slot_bytes,)``."""
        return self._tensor[slot]


def slot_views(layout: ExpertLayout, raw: torch.Tensor) -> Weights:
    """The tensors of an expert inside its slot, uint8 ``(slot_bytes,)``."""
    views = {}
    for parameter in layout.parameters:
        offset = layout.offsets[parameter.name]
        part = raw[offset : offset + parameter.nbytes]
        views[parameter.name] = part.view(parameter.dtype).view(parameter.shape)
    return views


def page_aligned(nbytes: int) -> Bytes:
    """Writable bytes that start on a page; huge ones if they can, which direct reads are much faster into."""
    memory: Any = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype=np.uint8)


def _reserve(least: int, most: int) -> mmap.mmap:
    try:
        return mmap.mmap(-1, most, flags=RESERVE)
    except OSError:  # addresses are limited too; then the arena can't grow
        try:
            return mmap.mmap(-1, least, flags=RESERVE)
        except OSError as error:
            raise BudgetError(f"cannot reserve {least} bytes for experts; give a smaller budget") from error
