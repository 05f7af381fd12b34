"""Finds the parameters of experts that a checkpoint stores as linear layers, each with a name of its own.

Quantisers split the experts of every family into such layers (llm-compressor's ``linearize_moe``, AutoRound's
``unfused_moe``), whatever names and shapes the family's own checkpoints have: ``MODULE.N.gate_proj``, ``up_proj`` and
``down_proj``, with ``(out, in)`` weights and perhaps biases. Some keep the family's names ``w1``, ``w2`` and ``w3``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers.core_model_loading import Concatenate, Interleave, MergeModulelist, Transpose, WeightConverter

from server.kernels.expert import alternates, transposed_names

GATE, UP, DOWN = "gate_proj", "up_proj", "down_proj"
PROJECTIONS = {GATE: GATE, UP: UP, DOWN: DOWN, "w1": GATE, "w2": DOWN, "w3": UP}
LINEAR = re.compile(rf"(.+)\.(\d+)\.({'|'.join(PROJECTIONS)})\.(weight|bias)")
GATE_UP = "gate_up_proj"
BIAS = "_bias"


@dataclass(frozen=True)
class ExpertLinear:
    """The place of a linear layer's weight or bias among the parameters of a module of experts."""

    module: str
    expert: int
    parameter: str
    order: int  # among the tensors that make up the parameter


def find_expert_linear(modules: Mapping[str, Any], base_prefix: str, name: str) -> ExpertLinear | None:
    """Return the place of a tensor by its name; None if it is not that of an expert's linear layer.

    Args:
        modules: the modules of experts by name.
        base_prefix: the name of the base model in the model, which the names of a checkpoint may lack or have.
        name: the tensor's name after transformers' renamings.
    """
    match = LINEAR.fullmatch(name)
    if match is None:
        return None
    found, number, given, kind = match.groups()
    candidates = (found, f"{base_prefix}.{found}", found.removeprefix(f"{base_prefix}."))
    owner = next((candidate for candidate in candidates if candidate in modules), None)
    if owner is None:
        return None
    module, projection = modules[owner], PROJECTIONS[given]
    is_half = module.has_gate and projection in (GATE, UP)
    parameter = (GATE_UP if is_half else projection) + (BIAS if kind == "bias" else "")
    if parameter not in dict(module.named_parameters(recurse=False)):
        return None
    return ExpertLinear(owner, int(number), parameter, int(is_half and projection == UP))


def linear_converter(module: Any, parameter: str, *, is_in_parts: bool) -> WeightConverter:
    """Build the conversion from the tensors of linear layers to one parameter.

    Args:
        is_in_parts: whether gate and up stay two matrices in a slot, whose outputs and biases are concatenated.
    """
    is_bias = parameter.endswith(BIAS)
    projections = [GATE, UP] if parameter.startswith(GATE_UP) else [parameter.removesuffix(BIAS)]
    operations: list[Any] = [MergeModulelist(dim=0)]
    if len(projections) > 1:
        operations.append(Concatenate(dim=1))
        if alternates(module) and not is_in_parts:
            operations.append(Interleave(dim=1, inverse=True))
    if parameter in transposed_names(module):
        operations.append(Transpose(1, 2))
    kind = "bias" if is_bias else "weight"
    return WeightConverter([f"*.{name}.{kind}" for name in projections], parameter, operations)
