"""Makes a device the one that a thread launches kernels on."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from server.device import is_gpu


def current_device(device: torch.device) -> AbstractContextManager[None]:
    """Launch Triton's kernels and graphs of this thread on a CUDA device; torch's own operations know theirs."""
    return torch.cuda.device(device) if is_gpu(device) else nullcontext()
