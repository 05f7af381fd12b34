"""CudaDevice: memory, copies and events of one CUDA device."""

from __future__ import annotations

from typing import Any

import torch

from expert_store.arena import HostArena
from expert_store.errors import BudgetError
from expert_store.io.pinned_memory import PinnedMemory

Event = Any  # torch.cuda.Event, or None for none


class CudaDevice:
    """One CUDA device. Any thread may call it, whatever device torch takes for that thread's current one."""

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call,unused-ignore]
        self._pinned = PinnedMemory(device, self.allocate)

    def allocate(self, nbytes: int) -> torch.Tensor:
        try:
            return torch.empty(nbytes, dtype=torch.uint8, device=self._device)
        except torch.OutOfMemoryError as error:
            raise BudgetError(
                f"cannot allocate {nbytes} bytes for experts on {self._device}; give a smaller --device-expert-memory"
            ) from error

    def give_back(self) -> None:
        torch.cuda.empty_cache()

    def copy(self, source: torch.Tensor, target: torch.Tensor, after: Event) -> Event:
        with torch.cuda.stream(self._stream):
            if after is not None:
                self._stream.wait_event(after)
            target.copy_(source, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call,unused-ignore]
            event.record(self._stream)
        return event

    def wait(self, event: Event) -> None:
        event.synchronize()

    def has_ended(self, event: Event) -> bool:
        return event is None or bool(event.query())

    def order(self, event: Event) -> None:
        if event is not None:
            torch.cuda.current_stream(self._device).wait_event(event)

    def mark(self) -> Event:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call,unused-ignore]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def pin(self, arena: HostArena, slot: int) -> None:
        self._pinned.pin(arena.tensor_of(slot))

    def unpin(self, arena: HostArena, slot: int) -> None:
        self._pinned.unpin(arena.tensor_of(slot))

    def close(self) -> None:
        self._pinned.close()
