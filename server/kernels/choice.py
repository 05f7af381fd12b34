"""Chooses the backend that runs a layer of experts."""

from __future__ import annotations

import logging
from functools import cache

from .backend import ExpertBackend, Layout
from .expert import ExpertsModule
from .native.backend import NativeBackend, expert_shape
from .pool import ComputePool
from .reference_backend import TorchBackend

log = logging.getLogger(__name__)


def choose_backend(module: ExpertsModule, layout: Layout, pool: ComputePool) -> ExpertBackend:
    """The fastest backend that can run a layer's experts.

    Args:
        module: the layer's, as transformers made it.
        layout: of its slots: names, dtypes and shapes of an expert's tensors.
        pool: threads that compute side by side.
    """
    if pool.kernels is None:
        return TorchBackend(pool)
    shape = expert_shape(module, layout)
    if isinstance(shape, str):
        _tell(f"{type(module).__name__} runs without native kernels: {shape}")
        return TorchBackend(pool)
    return NativeBackend(pool.kernels, shape)


@cache
def _tell(reason: str) -> None:
    """Log a reason, but not for every layer."""
    log.info(reason)
