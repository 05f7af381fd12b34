"""LoraTargets: the layers and experts of a model that a LoRA adapter can add to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from server.kernels.expert import transposed_names

if TYPE_CHECKING:
    from server.kernels.expert import ExpertsModule

MATRICES = ("gate_up_proj", "up_proj", "down_proj")  # of experts


@dataclass(frozen=True)
class LoraTargets:
    """The names under which PEFT knows a model's matrices, without ``base_model.model.`` before them.

    Args:
        linears: inputs and outputs of each linear layer that an adapter can add to.
        experts: inputs and outputs of each matrix of one routed expert, by layer and parameter of the experts module.
        expert_modules: the layer of each module of routed experts.
        num_experts: routed experts of each layer.
        refused: the reason for each other module with weights, as the end of the sentence "An adapter can't change
            NAME, because ...".
        latents: linear layers that attention absorbs, so that tokens can't have own adapters.
        copied: the embedding and the head, of which PEFT may save copies.
        routers: the layer of experts of each linear layer that is a router.
    """

    linears: Mapping[str, tuple[int, int]]
    experts: Mapping[tuple[int, str], tuple[int, int]]
    expert_modules: Mapping[str, int]
    num_experts: Mapping[int, int]
    refused: Mapping[str, str]
    latents: frozenset[str] = frozenset()
    copied: Mapping[str, nn.Module] = field(default_factory=dict)
    routers: Mapping[str, int] = field(default_factory=dict)


def expert_shapes(module: ExpertsModule) -> dict[str, tuple[int, int]]:
    """Return inputs and outputs of each matrix of one expert."""
    shapes: Mapping[str, tuple[int, ...]] = getattr(module, "parameter_shapes", {})
    transposed = transposed_names(module)
    return {
        name: (shape[0], shape[1]) if name in transposed else (shape[1], shape[0])
        for name, shape in shapes.items()
        if name in MATRICES and len(shape) == 2  # noqa: PLR2004
    }
