"""PinnedMemory: ranges of host memory that a CUDA device copies from and to directly."""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections.abc import Callable

import torch

log = logging.getLogger(__name__)

PROBE_BYTES = 4096  # at each end of a range


class PinnedMemory:
    """Locks ranges of host memory. Under some systems a part of the machine's memory can be locked only.

    WSL2 locks about half of the memory, and was seen to register ranges from which copies then do nothing and report
    no error. So the ends of each range are copied to the device and back once. After the first range that can't be
    locked, or is not copied, no more are locked; copies of those are slower.

    Args:
        device: the device that copies.
        allocate: returns so many bytes of its memory, for use by the current stream.
    """

    def __init__(self, device: torch.device, allocate: Callable[[int], torch.Tensor]):
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call,unused-ignore]
        with torch.cuda.stream(self._stream):
            self._probe = allocate(PROBE_BYTES)
        self._sizes: dict[int, int] = {}  # bytes by address
        self._can_pin = True
        self._probing = threading.Lock()

    def pin(self, memory: torch.Tensor) -> None:
        """Lock a range, uint8 ``(nbytes,)``, unless it is locked or the system refuses."""
        address = memory.data_ptr()
        if not self._can_pin or address in self._sizes:
            return
        with torch.cuda.device(self._device):  # or a new thread opens a context on the first device
            status = int(torch.cuda.cudart().cudaHostRegister(address, memory.numel(), 0))  # type: ignore[no-untyped-call,unused-ignore]
            if status:
                clear_error()
                self._stop(f"CUDA error {status}")
            elif self._is_copied(memory):
                self._sizes[address] = memory.numel()
            else:
                self._unregister(address)
                self._stop("copies of it do nothing")

    def unpin(self, memory: torch.Tensor) -> None:
        """Unlock a range, if it is locked."""
        if self._sizes.pop(memory.data_ptr(), None) is not None:
            self._unregister(memory.data_ptr())

    def close(self) -> None:
        """Unlock all ranges."""
        for address in self._sizes:
            self._unregister(address)
        self._sizes.clear()

    def _is_copied(self, memory: torch.Tensor) -> bool:
        """Return True if the device receives the bytes of both ends of a range."""
        with self._probing, torch.cuda.stream(self._stream):  # the current stream would wait for compute
            for end in (memory[:PROBE_BYTES], memory[-PROBE_BYTES:]):
                there, expected = self._probe[: end.numel()], end.clone()
                there.copy_(~expected)  # from pageable memory
                there.copy_(end, non_blocking=True)
                if not torch.equal(there.cpu(), expected):
                    return False
        return True

    def _stop(self, reason: str) -> None:
        self._can_pin = False
        log.warning(
            "pinning expert memory failed after %d bytes (%s); copies to %s will be slower; raise the limit of locked "
            "memory (ulimit -l; under WSL2 memory= in .wslconfig) or lower --host-expert-memory",
            sum(self._sizes.values()),
            reason,
            self._device,
        )

    def _unregister(self, address: int) -> None:
        with torch.cuda.device(self._device):
            if int(torch.cuda.cudart().cudaHostUnregister(address)):  # type: ignore[no-untyped-call,unused-ignore]
                clear_error()


def clear_error() -> None:
    """Take the error of a failed call from CUDA's runtime, which else reports it at the next launch of this thread."""
    name, function = ("libamdhip64.so", "hipGetLastError") if torch.version.hip else (_cudart(), "cudaGetLastError")
    try:
        runtime = ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)  # the one that torch has loaded
    except OSError:
        log.debug("%s is not loaded, so the error of a failed call stays", name)
    else:
        getattr(runtime, function)()


def _cudart() -> str:
    return f"libcudart.so.{(torch.version.cuda or '').partition('.')[0]}"
