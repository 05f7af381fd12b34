"""Which backend runs a layer of experts."""

from __future__ import annotations

from .backend import ExpertBackend, Layout
from .expert import ExpertsModule
from .pool import ComputePool
from .reference_backend import TorchBackend


def choose_backend(module: ExpertsModule, layout: Layout, pool: ComputePool) -> ExpertBackend:
    """The fastest backend that can run a layer's experts.

    Args:
        module: the layer's, as transformers made it.
        layout: of its slots: names, dtypes and shapes of an expert's tensors.
        pool: threads that compute side by side.
    """
    del module, layout
    return TorchBackend(pool)
