"""Where compute runs."""

from __future__ import annotations

import torch

from server.settings import SettingsError


def find_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is CUDA where there is one.

    Raises:
        SettingsError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise SettingsError(f"--device {name}: torch sees {count} CUDA devices; give cpu, or install a CUDA build")
        return torch.device("cuda", device.index or 0)
    return device
