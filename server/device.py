"""The device to compute on: its choice, and what differs between a GPU and the CPU."""

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
    if is_gpu(device):
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise SettingsError(
                f"--device {name}: torch sees {count} CUDA devices; use --device cpu, or install torch for CUDA"
            )
        return torch.device("cuda", device.index or 0)
    return device


def is_gpu(device: torch.device) -> bool:
    """Return True if a device computes in memory of its own, beside the host's."""
    return device.type == "cuda"


def free_and_total_bytes(gpu: torch.device) -> tuple[int, int]:
    """Return the free and the total memory of a GPU. What torch keeps for tensors to come counts as free."""
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(gpu)


def tensor_bytes(device: torch.device) -> int:
    """Return the bytes of all tensors in a device's own memory."""
    return torch.cuda.memory_allocated(device) if is_gpu(device) else 0


def wait_for(device: torch.device) -> None:
    """Wait until a device has computed all that it was given."""
    if is_gpu(device):
        torch.cuda.synchronize(device)
