"""CudaDevice: memory, copies and events of one CUDA device."""

from __future__ import annotations

import logging
from typing import Any

import torch

from expert_store.arena import HostArena
from expert_store.errors import BudgetError
from expert_store.io.pinned_memory import PinnedMemory

Event = Any  # torch.cuda.Event, or None for none

log = logging.getLogger(__name__)


class CudaDevice:
    """One CUDA device. Any thread may call it, whatever device torch takes for that thread's current one.

    Where an event can't be recorded, the host waits for the stream instead, and there is nothing left to wait for.
    """

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
            return _end_of(self._stream)

    def wait(self, event: Event) -> None:
        if event is not None:
            event.synchronize()

    def has_ended(self, event: Event) -> bool:
        return event is None or bool(event.query())

    def order(self, event: Event) -> None:
        if event is not None:
            torch.cuda.current_stream(self._device).wait_event(event)

    def mark(self) -> Event:
        return _end_of(torch.cuda.current_stream(self._device))

    def pin(self, arena: HostArena, slot: int) -> None:
        self._pinned.pin(arena.tensor_of(slot))

    def unpin(self, arena: HostArena, slot: int) -> None:
        self._pinned.unpin(arena.tensor_of(slot))

    def close(self) -> None:
        self._pinned.close()


def _end_of(stream: Any) -> Event:
    """Return the event of the end of what is queued on a stream; None if all of it has ended."""
    try:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call,unused-ignore]
        event.record(stream)
    except RuntimeError as error:  # or the slots of copies that still run would be used again
        log.warning("an event was not recorded, so the host waits for the device: %s", str(error).partition("\n")[0])
        stream.synchronize()
        return None
    return event
