"""Memory of the device tier: a CUDA device, or an emulation of one in CPU memory."""

from __future__ import annotations

import logging
from typing import Any, Protocol

import torch

from expert_store.arena import HostArena
from expert_store.errors import BudgetError

log = logging.getLogger(__name__)

Event = Any  # an event of the device; None where copies have ended when a call returns


class Device(Protocol):
    """Memory, copies on a stream of their own, and events that order them with compute."""

    def allocate(self, nbytes: int) -> torch.Tensor:
        """Return uint8 ``(nbytes,)`` in the device's memory; raise BudgetError if there is too little."""

    def copy(self, source: torch.Tensor, target: torch.Tensor, after: Event) -> Event:
        """Copy bytes on the copy stream, after the event ``after``; return the event of the copy's end."""

    def wait(self, event: Event) -> None:
        """Wait for an event on this thread."""

    def order(self, event: Event) -> None:
        """Make compute that this thread queues from now on wait for an event."""

    def mark(self) -> Event:
        """Return the event of the end of all compute that this thread has queued."""

    def pin(self, arena: HostArena, slot: int) -> None:
        """Lock the pages of a host slot that is filled or about to be, so that copies are fast."""

    def unpin(self, arena: HostArena, slot: int) -> None:
        """Unlock the pages of a host slot that is about to be retired."""

    def close(self) -> None:
        """Unlock all locked pages."""


class EmulatedDevice:
    """A device in CPU memory, so that every path of the device tier runs without a GPU."""

    def allocate(self, nbytes: int) -> torch.Tensor:
        try:
            return torch.empty(nbytes, dtype=torch.uint8)
        except RuntimeError as error:
            raise BudgetError(f"cannot allocate {nbytes} bytes for experts; give a smaller budget") from error

    def copy(self, source: torch.Tensor, target: torch.Tensor, after: Event) -> Event:
        del after  # compute on a CPU has ended when a lease ends
        target.numpy()[:] = source.numpy()  # numpy copies in this thread alone, torch would use its thread pool

    def wait(self, event: Event) -> None:
        """Do nothing, as copies have ended when they return."""

    def order(self, event: Event) -> None:
        """Do nothing, as copies have ended when they return."""

    def mark(self) -> Event:
        return None

    def pin(self, arena: HostArena, slot: int) -> None:
        """Do nothing, as there is no bus to cross."""

    def unpin(self, arena: HostArena, slot: int) -> None:
        """Do nothing, as there is no bus to cross."""

    def close(self) -> None:
        """Do nothing, as nothing is locked."""


class CudaDevice:
    """One CUDA device. A slot is pinned after it was filled for the first time, as pinning touches every page."""

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call,unused-ignore]
        self._pinned: dict[int, int] = {}  # address -> bytes
        self._can_pin = True

    def allocate(self, nbytes: int) -> torch.Tensor:
        try:
            return torch.empty(nbytes, dtype=torch.uint8, device=self._device)
        except torch.OutOfMemoryError as error:
            raise BudgetError(
                f"cannot allocate {nbytes} bytes for experts on {self._device}; give a smaller --device-expert-memory"
            ) from error

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

    def order(self, event: Event) -> None:
        if event is not None:
            torch.cuda.current_stream(self._device).wait_event(event)

    def mark(self) -> Event:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call,unused-ignore]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def pin(self, arena: HostArena, slot: int) -> None:
        raw = arena.tensor_of(slot)
        address = raw.data_ptr()
        if not self._can_pin or address in self._pinned:
            return
        status = int(torch.cuda.cudart().cudaHostRegister(address, raw.numel(), 0))  # type: ignore[no-untyped-call,unused-ignore]
        if status:
            self._can_pin = False
            log.warning(
                "pinning expert memory failed after %d bytes (CUDA error %d); copies to %s will be slower; "
                "raise the limit of locked memory (ulimit -l) or lower --host-expert-memory",
                sum(self._pinned.values()),
                status,
                self._device,
            )
        else:
            self._pinned[address] = raw.numel()

    def unpin(self, arena: HostArena, slot: int) -> None:
        address = arena.tensor_of(slot).data_ptr()
        if self._pinned.pop(address, None) is not None:
            torch.cuda.cudart().cudaHostUnregister(address)  # type: ignore[no-untyped-call,unused-ignore]

    def close(self) -> None:
        for address in self._pinned:
            torch.cuda.cudart().cudaHostUnregister(address)  # type: ignore[no-untyped-call,unused-ignore]
        self._pinned.clear()


def open_device(device: torch.device) -> Device:
    """Return the device of a tier; a CPU is emulated."""
    return CudaDevice(device) if device.type == "cuda" else EmulatedDevice()
