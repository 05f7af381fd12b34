"""Memory of the device tier: the interface of a device, and an emulation of one in CPU memory."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from expert_store.arena import HostArena
from expert_store.errors import BudgetError
from expert_store.io.cuda_device import CudaDevice

Event = Any  # an event of the device; None where copies have ended when a call returns


class Device(Protocol):
    """Memory, copies on a stream of their own, and events that order them with compute."""

    def allocate(self, nbytes: int) -> torch.Tensor:
        """Return uint8 ``(nbytes,)`` in the device's memory; raise BudgetError if there is too little."""

    def give_back(self) -> None:
        """Give memory that was allocated and is not used any more back to the system."""

    def copy(self, source: torch.Tensor, target: torch.Tensor, after: Event) -> Event:
        """Copy bytes on the copy stream, after the event ``after``; return the event of the copy's end."""

    def wait(self, event: Event) -> None:
        """Wait for an event on this thread."""

    def has_ended(self, event: Event) -> bool:
        """Return whether an event has happened, without waiting for it."""

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

    def give_back(self) -> None:
        """Do nothing, as the C library does so."""

    def copy(self, source: torch.Tensor, target: torch.Tensor, after: Event) -> Event:
        del after  # compute on a CPU has ended when a lease ends
        target.numpy()[:] = source.numpy()  # numpy copies in this thread alone, torch would use its thread pool

    def wait(self, event: Event) -> None:
        """Do nothing, as copies have ended when they return."""

    def has_ended(self, event: Event) -> bool:
        del event
        return True

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


def open_device(device: torch.device) -> Device:
    """Return the device of a tier; a CPU is emulated."""
    return CudaDevice(device) if device.type == "cuda" else EmulatedDevice()
