"""Finds the layers and experts of a loaded trunk that a LoRA adapter can add to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from server.kernels.expert import transposed_names
from server.model.architecture import head_of, text_part
from server.model.attention.mla import LatentProjection
from server.model.experts.variant_routing import owner_of
from server.model.quantised.linear import QuantisedLinear

if TYPE_CHECKING:
    from server.kernels.expert import ExpertsModule
    from server.model.resident_model import ResidentModel

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


def lora_targets(trunk: ResidentModel) -> LoraTargets:
    """Return the layers and experts of a trunk that an adapter can add to."""
    model, layers, linears = trunk.model, trunk.expert_numbers, trunk.adaptable
    inside = {*text_part(model).modules(), head_of(model)}
    ends = {model.get_input_embeddings(), head_of(model)}
    refused: dict[str, str] = {}
    experts: dict[str, Any] = {}
    for name, module in model.named_modules():
        if module in layers:
            experts[name] = module
        elif name not in linears and any(True for _ in module.parameters(recurse=False)):
            refused[name] = _reason(module, module in inside)
    shapes = {
        (layers[module], parameter): shape
        for module in experts.values()
        for parameter, shape in expert_shapes(module).items()
    }
    latents = frozenset(name for name, module in model.named_modules() if isinstance(module, LatentProjection))
    return LoraTargets(
        linears,
        shapes,
        {name: layers[module] for name, module in experts.items()},
        {layers[module]: int(module.num_experts) for module in experts.values()},
        refused,
        latents,
        {name: module for name, module in model.named_modules() if module in ends},
        {name: layer for layer, router in trunk.routers.items() if (name := owner_of(router)) in linears},
    )


def _reason(module: nn.Module, is_inside: bool) -> str:
    if not is_inside:
        return "it is not part of the text model"
    if isinstance(module, nn.Linear | QuantisedLinear):
        return "the model does not call it with one row for each token"
    return f"adapters of layers of type {type(module).__name__} are not supported"


def expert_shapes(module: ExpertsModule) -> dict[str, tuple[int, int]]:
    """Return inputs and outputs of each matrix of one expert."""
    shapes: Mapping[str, tuple[int, ...]] = getattr(module, "parameter_shapes", {})
    transposed = transposed_names(module)
    return {
        name: (shape[0], shape[1]) if name in transposed else (shape[1], shape[0])
        for name, shape in shapes.items()
        if name in MATRICES and len(shape) == 2  # noqa: PLR2004
    }
