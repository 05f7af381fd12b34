"""Finds what an adapter's module names mean in a loaded model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from server.model.lora.peft_config import RETRAIN
from server.model.lora.targets import LoraTargets

PEFT_PREFIX = "base_model.model."
# Places of the text model: alone, within a multimodal model, or as other releases of transformers name it.
TEXT_PREFIXES = (
    "model.language_model.model.",
    "language_model.model.",
    "model.language_model.",
    "model.text_model.",
    "language_model.",
    "text_model.",
    "thinker.model.",
    "model.model.",
    "model.",
    "",
)
EXPERT = re.compile(r"(?P<module>.+\.experts)\.(?P<expert>\d{1,6})\.(?P<matrix>\w+)")
LAYER = re.compile(r"(.*\blayers\.\d+)\..*")
# Parameter of the experts module that has a matrix of one expert, and which half of its outputs, by Mixtral's,
# Llama's and T5's names.
GATE, UP = 0, 1
MATRICES = {
    "gate_proj": ("gate_up_proj", GATE),
    "up_proj": ("gate_up_proj", UP),
    "w1": ("gate_up_proj", GATE),
    "w3": ("gate_up_proj", UP),
    "gate_up_proj": ("gate_up_proj", None),
    "down_proj": ("down_proj", None),
    "w2": ("down_proj", None),
    "wi": ("up_proj", None),
    "wo": ("down_proj", None),
}


class ExpertMatrix(NamedTuple):
    """One matrix of one routed expert, or the gate's or the up projection's half of its outputs."""

    layer: int
    expert: int
    parameter: str
    half: int | None


class TargetNames:
    """The names of a model's layers and experts, as adapters write them."""

    def __init__(self, targets: LoraTargets):
        self._targets = targets
        modules = [*targets.expert_modules, *targets.linears]
        self._prefix = next((name[: name.index("layers.")] for name in modules if "layers." in name), "")

    def linear(self, name: str) -> str | None:
        """Return the linear layer that a name means."""
        return next((each for each in self._spellings(name) if each in self._targets.linears), None)

    def copied(self, name: str) -> nn.Module | None:
        """Return the embedding or the head that a name means."""
        copied = self._targets.copied
        return next((copied[each] for each in self._spellings(name) if each in copied), None)

    def is_refused(self, name: str) -> bool:
        """Return True if a name means a module that no adapter can change."""
        return any(each in self._targets.refused for each in self._spellings(name))

    def experts(self, name: str) -> int | None:
        """Return the layer of the module of experts that a name means."""
        modules = self._targets.expert_modules
        found = next((modules[each] for each in self._spellings(name) if each in modules), None)
        if found is not None:
            return found
        # Older releases of transformers name the block around the experts otherwise.
        for spelling in self._spellings(name):
            layer = LAYER.fullmatch(spelling)
            alike = [] if layer is None else [each for each in modules if each.startswith(f"{layer[1]}.")]
            if len(alike) == 1 and spelling.endswith(".experts"):
                return modules[alike[0]]
        return None

    def expert_matrix(self, name: str) -> ExpertMatrix | None:
        """Return the matrix of one expert that a name such as ``model.layers.0.mlp.experts.3.gate_proj`` means."""
        parts = EXPERT.fullmatch(name)
        layer = None if parts is None else self.experts(parts["module"])
        if parts is None or layer is None or parts["matrix"] not in MATRICES:
            return None
        expert = int(parts["expert"])
        parameter, half = MATRICES[parts["matrix"]]
        if (layer, parameter) not in self._targets.experts and half == UP:
            parameter, half = "up_proj", None
        if (layer, parameter) not in self._targets.experts or expert >= self._targets.num_experts[layer]:
            return None
        return ExpertMatrix(layer, expert, parameter, half)

    def absence(self, name: str) -> str:
        """Return why no addition to a module can be applied."""
        for spelling in self._spellings(name):
            if spelling in self._targets.refused:
                return f"it can't change {name}, because {self._targets.refused[spelling]}; {RETRAIN}, or merge it"
        return f"the model has no layer {name} that an adapter can change"

    def _spellings(self, name: str) -> Iterator[str]:
        """Yield a name as it may be in this model, itself first."""
        yield name
        for prefix in TEXT_PREFIXES:
            rest = name.removeprefix(prefix)
            if name.startswith(prefix) and rest.startswith("layers."):
                yield self._prefix + rest
            if name.startswith(prefix) and rest == "lm_head":
                yield rest
            if name.startswith(prefix) and rest == "embed_tokens":
                yield self._prefix + rest
