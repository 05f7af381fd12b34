"""Chooses the device to compute on."""

from __future__ import annotations

import torch

from server.settings import SettingsError


def find_device(name: str) -> torch.device:
    """Return the device of a name; ``auto`` is the first CUDA device, or the CPU if there is none.

    Raises:
        SettingsError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise SettingsError(
                f"--device {name}: torch sees {count} CUDA devices; use --device cpu, or install torch for CUDA"
            )
        return torch.device("cuda", device.index or 0)
    return device
