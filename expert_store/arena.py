"""Equal slots for experts of one layout, in one allocation."""

from __future__ import annotations

import errno
import mmap
import os
from typing import Any

import numpy as np
import torch

from expert_store.address_space import spare_address_bytes
from expert_store.catalog import ExpertLayout
from expert_store.errors import BudgetError
from expert_store.sources.base import Bytes

Weights = dict[str, torch.Tensor]

NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # newer than Python 3.11; the value is that of x86 and ARM
RESERVE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE


class HostArena:
    """Slots of one layout in CPU memory; ``num_slots`` in use at first, ``capacity`` at most.

    Addresses are reserved for all of them at once, and the system provides pages at their first use. So the memory of
    single slots can be freed (``retire``) and used again (``revive``) without moving anything.

    Raises:
        BudgetError: the memory could not be reserved.
    """

    def __init__(self, layout: ExpertLayout, num_slots: int, capacity: int):
        self.layout = layout
        self._map = _reserve(num_slots, capacity, layout.slot_bytes)
        self.capacity = len(self._map) // layout.slot_bytes
        self._bytes: Bytes = np.frombuffer(self._map, dtype=np.uint8).reshape(self.capacity, layout.slot_bytes)
        self.tensor = torch.from_numpy(self._bytes)  # type: ignore[no-untyped-call,unused-ignore]
        self.address = self._bytes.ctypes.data  # where the first slot begins
        self._views: dict[int, Weights] = {}
        self._advise(0, num_slots, "MADV_HUGEPAGE")  # direct reads into huge pages are faster by a tenth to a half

    def weights(self, slot: int) -> Weights:
        """Return the tensors of a slot by parameter name."""
        views = self._views.get(slot)
        if views is None:
            views = self._views[slot] = slot_views(self.layout, self.tensor[slot])
        return views

    def bytes_of(self, slot: int) -> Bytes:
        """Return all bytes of a slot, writable."""
        raw: Bytes = self._bytes[slot]
        return raw

    def tensor_of(self, slot: int) -> torch.Tensor:
        """Return all bytes of a slot as uint8 ``(slot_bytes,)``."""
        return self.tensor[slot]

    def retire(self, slot: int) -> None:
        """Free a slot's pages."""
        self._advise(slot, 1, "MADV_NOHUGEPAGE")  # or the system may complete them to a huge page again
        self._advise(slot, 1, "MADV_DONTNEED")
        self._views.pop(slot, None)

    def revive(self, slot: int) -> None:
        """Prepare a slot that was retired or never used."""
        self._advise(slot, 1, "MADV_HUGEPAGE")

    def _advise(self, slot: int, count: int, advice: str) -> None:
        option = getattr(mmap, advice, None)
        if option is not None:
            advise(self._map, option, slot * self.layout.slot_bytes, count * self.layout.slot_bytes)


class DeviceArena:
    """Slots of one layout in a device's memory.

    Args:
        memory: uint8 ``(num_slots * layout.slot_bytes,)`` on the device.
    """

    def __init__(self, layout: ExpertLayout, memory: torch.Tensor):
        self.layout = layout
        self.tensor = memory.view(-1, layout.slot_bytes)
        self.address = memory.data_ptr()  # where the first slot begins
        self._views = [slot_views(layout, raw) for raw in self.tensor]

    def weights(self, slot: int) -> Weights:
        """Return the tensors of a slot by parameter name."""
        return self._views[slot]

    def tensor_of(self, slot: int) -> torch.Tensor:
        """Return all bytes of a slot as uint8 ``(slot_bytes,)``."""
        return self.tensor[slot]


def slot_views(layout: ExpertLayout, raw: torch.Tensor) -> Weights:
    """Return the tensors of an expert as views of its slot, uint8 ``(slot_bytes,)``."""
    views = {}
    for parameter in layout.parameters:
        offset = layout.offsets[parameter.name]
        part = raw[offset : offset + parameter.nbytes]
        views[parameter.name] = part.view(parameter.dtype).view(parameter.shape)
    return views


def machine_bytes() -> int:
    """Return the bytes of the machine's memory, which no arena can exceed."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def advise(memory: mmap.mmap, advice: int, offset: int, nbytes: int) -> None:
    """Advise the system about a range of memory; kernels without huge pages refuse advice about them."""
    try:
        memory.madvise(advice, offset, nbytes)
    except OSError as error:
        if error.errno != errno.EINVAL or advice == mmap.MADV_DONTNEED:
            raise


def page_aligned(nbytes: int) -> Bytes:
    """Return writable bytes that start on a page; on huge pages if possible, as direct reads into these are faster."""
    memory: Any = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        advise(memory, mmap.MADV_HUGEPAGE, 0, nbytes)
    return np.frombuffer(memory, dtype=np.uint8)


def _reserve(least: int, most: int, slot_bytes: int) -> mmap.mmap:
    """Reserve addresses of whole slots: ``most`` of them, or as many as limits of the address space admit.

    Of what a limit leaves, half is kept for the stacks of threads, the KV cache and the heap.
    """
    spare = spare_address_bytes()
    num_slots = most if spare is None else max(least, min(most, spare // 2 // slot_bytes))
    while True:
        try:
            return mmap.mmap(-1, num_slots * slot_bytes, flags=RESERVE)
        except OSError as error:
            if num_slots <= least:
                raise BudgetError(
                    f"cannot reserve {least * slot_bytes} bytes for experts ({error.strerror}); "
                    "give a smaller budget, or raise the limit of the process (`ulimit -v`, `ulimit -d`)"
                ) from error
            num_slots = max(least, num_slots // 2)
