"""Codebooks of GGUF's IQ types in a device's memory."""

from __future__ import annotations

from functools import cache

import torch

from server.kernels.formats import file_blocks
from server.kernels.native.structures.matrices import Format


@cache
def codebook_on(device: torch.device, form: int) -> torch.Tensor | None:
    """Return the codebook of a format, uint8 ``(entries, numbers)``; None if it has none."""
    numbers = file_blocks.codebook_of(Format(form))
    return None if numbers is None else torch.from_numpy(numbers).to(device)
