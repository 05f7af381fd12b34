"""The table of replacements by class of transformers, and the modules that can't be served."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from transformers.core_model_loading import WeightTransform

from server.model.errors import ModelError
from server.model.experts.replacements.base import ReplacementExperts
from server.model.experts.replacements.dbrx import FlatExperts
from server.model.experts.replacements.jetmoe import PairedMoe, SharedKeysAttention
from server.model.experts.replacements.llama4 import InputScaledMoe
from server.model.experts.replacements.longcat import IdentityMoe
from server.model.experts.replacements.step3p7 import ClampedExperts
from server.model.experts.replacements.switch_nllb import NllbExperts, SwitchExperts

REPLACEMENTS: dict[str, Callable[[Any], nn.Module]] = {  # by name of the original class
    "DbrxExperts": FlatExperts,
    "JetMoeAttention": SharedKeysAttention,
    "JetMoeMoE": PairedMoe,
    "Llama4TextMoe": InputScaledMoe,
    "LongcatFlashMoE": IdentityMoe,
    "NllbMoeExperts": NllbExperts,
    "Step3p7Experts": ClampedExperts,
    "SwitchTransformersExperts": SwitchExperts,
}
UNSUPPORTED = {  # what a model has, by name of the class
    "DogeCDMoE": "experts whose router gives a token the scores of other tokens of its batch, so that what is written "
    "depends on what else is computed; it can't be served",
    "ErgoExperts": "experts whose results each have a norm of their own before they are summed, which is not "
    "supported yet",
    "Kolibri1_1Indexer": "layers that choose keys from a pool of an earlier layer, which is not supported yet",
}


def replace_experts(model: nn.Module) -> None:
    """Replace modules whose experts would not call the hooks, or not correctly.

    Raises:
        ModelError: the model has modules that can't be served.
    """
    found = {name: module for name, module in model.named_modules() if type(module).__name__ in REPLACEMENTS}
    for name, module in found.items():
        model.set_submodule(name, REPLACEMENTS[type(module).__name__](module))
        if isinstance(module, nn.ModuleDict):  # its owner would initialise its entries
            owner: Any = model.get_submodule(name.rpartition(".")[0])
            owner._is_hf_initialized = True  # noqa: SLF001
    for module in model.modules():
        kind = type(module).__name__
        if kind in UNSUPPORTED:
            raise ModelError(f"{type(model).__name__} has {UNSUPPORTED[kind]}")


def conversions(model: nn.Module) -> list[WeightTransform]:
    """Return the conversions of a checkpoint's tensors into the parameters of replacements."""
    kinds = {type(module) for module in model.modules() if isinstance(module, ReplacementExperts)}
    return [transform for kind in sorted(kinds, key=lambda kind: kind.__name__) for transform in kind.conversions()]
