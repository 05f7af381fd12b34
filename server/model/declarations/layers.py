"""Finds the modules that a declaration is about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import nn
from transformers import PreTrainedModel

from server.model.architecture import decoder_layers, text_body
from server.model.blocks.declaration import MixerDeclaration
from server.model.declarations.declaration import Declaration, Layer, Router

Kind = TypeVar("Kind", bound=MixerDeclaration)


def layers_of(model: PreTrainedModel, declared: Declaration) -> list[tuple[nn.Module, Layer]]:
    """Return the decoder layer of each declared layer, and what it is."""
    modules = [*(decoder_layers(text_body(model)) or ())]
    return [(modules[index // declared.layers_in_one], layer) for index, layer in enumerate(declared.layers)]


def mixers_of(model: PreTrainedModel, declared: Declaration, kind: type[Kind]) -> Mapping[nn.Module, Kind]:
    """Return the mixers of one kind, by their modules."""
    return {
        layer.get_submodule(block.mixer.module): block.mixer
        for layer, block in layers_of(model, declared)
        if isinstance(block.mixer, kind)
    }


def routers_of(model: PreTrainedModel, declared: Declaration) -> Mapping[nn.Module, Router]:
    """Return the routers by the modules that own their matrices, or else all their parameters."""
    found: dict[nn.Module, Router] = {}
    for layer, block in layers_of(model, declared):
        experts = block.experts
        for router in [] if experts is None else [experts.router, *([experts.images.router] if experts.images else [])]:
            owner = router.module if router.weight is None else router.weight.rpartition(".")[0]
            found[layer.get_submodule(owner)] = router
    return found
