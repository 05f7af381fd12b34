"""Copies small arrays of the host to a device, without waiting for it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch


def upload(numbers: npt.NDArray[np.int32], device: torch.device) -> torch.Tensor:
    """Return an int32 array on a device; the copy is in the order of the current stream."""
    host = torch.from_numpy(numbers)
    if device.type == "cuda":  # a pinned buffer is kept by torch until the copy has ended
        return host.pin_memory().to(device, non_blocking=True)
    return host
