"""One layer of routed experts, and what stays the same for it in every step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from expert_store import ExpertCatalog, ExpertKey, ExpertLayout
from server.kernels.backend import ExpertBackend
from server.kernels.backend_selection import select_backend
from server.kernels.compute_pool import ComputePool
from server.kernels.expert import ExpertsModule


@dataclass(frozen=True)
class ExpertLayer:
    """A layer of experts with its slot layout and the backend that runs it."""

    number: int
    keys: tuple[ExpertKey, ...]
    layout: ExpertLayout
    backend: ExpertBackend


def expert_layers(
    layers: Mapping[ExpertsModule, int], catalog: ExpertCatalog, pool: ComputePool
) -> dict[ExpertsModule, ExpertLayer]:
    """Return the layer of each experts module of a model, and choose the backend that runs it."""
    return {
        module: ExpertLayer(
            number,
            tuple(ExpertKey(number, expert) for expert in range(module.num_experts)),
            catalog.layout(number),
            select_backend(module, catalog.layout(number), pool),
        )
        for module, number in layers.items()
    }
