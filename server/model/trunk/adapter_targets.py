"""Finds the layers and experts of a loaded trunk that a LoRA adapter can add to."""

from __future__ import annotations

from typing import Any

from torch import nn

from server.model.architecture import head_of, text_part
from server.model.attention.mla import LatentProjection
from server.model.experts.variant_routing import owner_of
from server.model.lora.targets import LoraTargets, expert_shapes
from server.model.quantised.linear import QuantisedLinear
from server.model.trunk.base_trunk import BaseTrunk


def lora_targets(trunk: BaseTrunk) -> LoraTargets:
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
