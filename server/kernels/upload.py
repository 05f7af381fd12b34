"""Copies small arrays of the host to a device, without waiting for it."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch

from server.device import is_gpu


def upload(numbers: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """Return an array as a tensor on a device; the copy is in the order of the current stream."""
    host = torch.from_numpy(numbers)
    if is_gpu(device):  # a pinned buffer is kept by torch until the copy has ended
        return host.pin_memory().to(device, non_blocking=True)
    return host


def upload_into(numbers: npt.NDArray[Any], target: torch.Tensor) -> None:
    """Copy an array over a tensor on a device, in the order of the current stream."""
    host = torch.from_numpy(numbers)
    target.copy_(host.pin_memory() if is_gpu(target.device) else host, non_blocking=True)
