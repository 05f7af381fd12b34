"""Makes a device the one that a thread launches kernels on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from server.device import is_gpu


@contextmanager
def current_device(device: torch.device) -> Iterator[None]:
    """Launch Triton's kernels and graphs of this thread on a CUDA device; torch's own operations know theirs."""
    if not is_gpu(device):
        yield
        return
    with torch.cuda.device(device):
        yield
