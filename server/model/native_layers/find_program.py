"""Finds what runs where: a model's layers on native kernels, or all of it through the modules of transformers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from server.kernels.expert import ExpertsModule
from server.kernels.native.library import Kernels
from server.model.coded_linears import CodedLinears
from server.model.experts.expert_layer import ExpertLayer
from server.model.forward import Forward
from server.model.native_layers.model import NativeModel
from server.model.native_layers.recognise import find_native_layers
from server.model.program import NO_KERNELS, ModelProgram, Target
from server.model.transformers_hooks.batching_checks import MAY_BE_NATIVE


@torch.inference_mode()
def find_program(
    model: PreTrainedModel,
    forward: Forward,
    layers: Mapping[ExpertsModule, ExpertLayer],
    *,
    tokens: Sequence[int],
    kernels: Kernels | None,
    longest: int,
    recurrent: Collection[nn.Module],
    special: str | None,
    coded: CodedLinears,
) -> tuple[NativeModel | None, ModelProgram]:
    """Return a model as the native kernels run it, None if they can't, and what runs where.

    Args:
        model: with its weights.
        forward: calls the model.
        layers: the model's modules of experts.
        tokens: to compare its layers on.
        kernels: that may run it.
        longest: tokens of the longest sequence.
        recurrent: modules that keep states.
        special: layers whose attention modules run sequence by sequence, if the kernels do not have all layers.
        coded: the linear layers that are coded; they become plain again if modules run the model.
    """
    by_sequence = f"{type(model).__name__} has {special}, whose attention runs sequence by sequence"
    if kernels is None or special not in (None, *MAY_BE_NATIVE):
        reason = NO_KERNELS if special is None else by_sequence
        return None, ModelProgram.uniform(model, Target.MODULES, reason)
    found = find_native_layers(
        model, forward, layers, tokens=tokens, kernels=kernels, longest=longest, recurrent=recurrent
    )
    if isinstance(found, NativeModel) and (special is None or found.program.is_native):
        return found, found.program
    reason = found if isinstance(found, str) else f"its {found.outside[0].name} is not native"
    coded.restore()
    if special is not None:
        reason = f"{by_sequence}, because {reason}"
    return None, ModelProgram.uniform(model, Target.MODULES, reason)
