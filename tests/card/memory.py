"""Memory of the card: how much is in use, and who accesses it without an order."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from tests.card.counts import fails, lock, place, races
from tests.card.streams import Stream, current_stream, touch_context

MOST_ACCESSES = 4096  # remembered of an allocation


@dataclass(eq=False)
class Access:
    stream: Stream
    number: int  # of the operation
    first: int
    last: int
    is_write: bool
    place: str


@dataclass(eq=False)
class Allocation:
    reference: StorageWeakRef
    first: int
    nbytes: int
    device: int
    is_shared: bool = False  # between streams; only then accesses are remembered
    accesses: list[Access] = field(default_factory=list)


class Memory:
    """Allocations of all devices, by address."""

    def __init__(self, total_bytes: int):
        self.total_bytes = total_bytes
        self._known: dict[int, Allocation] = {}

    def check(self, shape: torch.Size | tuple[int, ...], dtype: torch.dtype, device: int) -> None:
        """Raise OutOfMemoryError if so much does not fit any more."""
        touch_context(device)
        nbytes = math.prod(shape) * dtype.itemsize
        if fails("allocation") or (nbytes > 1 << 20 and self.used(device) + nbytes > self.total_bytes):
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {nbytes} bytes.")

    def add(self, inner: torch.Tensor, device: int) -> None:
        """Note new memory. Whoever had it before may have queued work on this thread's stream that still uses it."""
        storage = inner.untyped_storage()
        with lock:
            stream = current_stream(device)
            first = storage.data_ptr()
            allocation = Allocation(StorageWeakRef(storage), first, storage.nbytes(), device)
            allocation.accesses.append(
                Access(stream, stream.count, first, first + allocation.nbytes, is_write=True, place="its allocation")
            )
            self._known[first] = allocation

    def used(self, device: int) -> int:
        with lock:
            self._known = {at: each for at, each in self._known.items() if not each.reference.expired()}
            return sum(each.nbytes for each in self._known.values() if each.device == device)

    def share(self, inner: torch.Tensor) -> None:
        """Remember accesses from now on, as several streams use this memory."""
        allocation = self.find(inner)
        if allocation is not None:
            allocation.is_shared = True

    def access(self, inner: torch.Tensor, stream: Stream, number: int, *, is_write: bool) -> None:
        """Note an access by a stream's operation; a race is one that no event puts after another stream's."""
        allocation = self.find(inner)
        if allocation is None or not allocation.is_shared or not inner.numel():
            return
        extent = sum((size - 1) * step for size, step in zip(inner.shape, inner.stride(), strict=True)) + 1
        first = inner.data_ptr()
        self.touch(allocation, first, first + extent * inner.element_size(), stream, number, is_write=is_write)

    def touch(
        self, allocation: Allocation, first: int, last: int, stream: Stream, number: int, *, is_write: bool
    ) -> None:
        """Note an access to a range of addresses in shared memory; see ``access``."""
        at, kept = place(), []
        for other in allocation.accesses:
            overlaps = other.first < last and first < other.last
            is_conflict = overlaps and (is_write or other.is_write) and other.stream is not stream
            if is_conflict and stream.clock.get(other.stream, 0) < other.number:
                kinds = ("write" if is_write else "read"), ("write" if other.is_write else "read")
                races[f"{kinds[0]} at {at} is not ordered after the {kinds[1]} at {other.place}"] += 1
            is_replaced = first <= other.first and other.last <= last and other.is_write <= is_write
            if not (is_replaced and other.stream is stream):
                kept.append(other)
        kept.append(Access(stream, number, first, last, is_write, at))
        allocation.accesses = kept[-MOST_ACCESSES:]

    def find(self, inner: torch.Tensor) -> Allocation | None:
        """Return the allocation that a tensor lies in."""
        allocation = self._known.get(inner.untyped_storage().data_ptr())
        return None if allocation is None or allocation.reference.expired() else allocation
