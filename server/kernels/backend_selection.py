"""Selects the backend that runs a layer of experts."""

from __future__ import annotations

import logging
from functools import cache

from server.kernels.backend import ExpertBackend, Layout
from server.kernels.compute_pool import ComputePool
from server.kernels.expert import ExpertsModule
from server.kernels.native.backend import NativeBackend, expert_shape
from server.kernels.torch_backend import TorchBackend

log = logging.getLogger(__name__)


def select_backend(module: ExpertsModule, layout: Layout, pool: ComputePool) -> ExpertBackend:
    """Return the fastest backend that can run a layer's experts.

    Args:
        module: the layer's experts module from transformers.
        layout: names, dtypes and shapes of an expert's tensors in a slot.
        pool: the compute threads.
    """
    if pool.kernels is None:
        return TorchBackend(pool)
    shape = expert_shape(module, layout)
    if isinstance(shape, str):
        _log_once(f"{type(module).__name__} runs in torch, because the native kernels do not support it: {shape}")
        return TorchBackend(pool)
    return NativeBackend(pool.kernels, shape)


@cache
def _log_once(reason: str) -> None:
    """Log a reason once, not for every layer."""
    log.info(reason)
