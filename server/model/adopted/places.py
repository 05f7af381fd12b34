"""Which modules of transformers get one of ours in their places, and which can't have one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from transformers.core_model_loading import WeightTransform

from server.model.errors import ModelError

from .base import AdoptedExperts
from .dbrx import FlatExperts
from .encdec import NllbExperts, SwitchExperts
from .jetmoe import PairedMoe, SharedKeysAttention
from .llama4 import InputScaledMoe
from .longcat import IdentityExperts
from .step import ClampedExperts

ADOPTED: dict[str, Callable[[Any], nn.Module]] = {  # by the original's class
    "DbrxExperts": FlatExperts,
    "JetMoeAttention": SharedKeysAttention,
    "JetMoeMoE": PairedMoe,
    "Llama4TextMoe": InputScaledMoe,
    "LongcatFlashExperts": IdentityExperts,
    "NllbMoeExperts": NllbExperts,
    "Step3p7Experts": ClampedExperts,
    "SwitchTransformersExperts": SwitchExperts,
}
REFUSED = {
    "DogeCDMoE": "whose router gives a token the scores of other tokens of its batch, so that what is written depends "
    "on what else is computed; it can't be served",
}


def adopt_experts(model: nn.Module) -> None:
    """Put modules of ours in the places of those that would not come to the seam, or not as they should.

    Raises:
        ModelError: the model has experts that can't be served.
    """
    found = {name: module for name, module in model.named_modules() if type(module).__name__ in ADOPTED}
    for name, module in found.items():
        model.set_submodule(name, ADOPTED[type(module).__name__](module))
        if isinstance(module, nn.ModuleDict):  # whose entries its owner would initialise
            owner: Any = model.get_submodule(name.rpartition(".")[0])
            owner._is_hf_initialized = True  # noqa: SLF001
    for module in model.modules():
        kind = type(module).__name__
        if kind in REFUSED:
            raise ModelError(f"{type(model).__name__} has experts {REFUSED[kind]}")


def conversions(model: nn.Module) -> list[WeightTransform]:
    """How a checkpoint's tensors become the parameters of the modules that were adopted."""
    kinds = {type(module) for module in model.modules() if isinstance(module, AdoptedExperts)}
    return [transform for kind in sorted(kinds, key=lambda kind: kind.__name__) for transform in kind.conversions()]
