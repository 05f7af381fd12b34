"""Finds what runs where: a model's layers on native kernels, or all of it through the modules of transformers."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

from server.kernels.expert import ExpertsModule
from server.kernels.native.backend import expert_shape
from server.kernels.native.library import Kernels
from server.model.architecture import text_body
from server.model.attention.key_choice import INDEXED
from server.model.blocks.errors import UnsupportedLayerError
from server.model.coded_linears import CodedLinears
from server.model.errors import NotBatchableError
from server.model.experts.expert_layer import ExpertLayer
from server.model.first_pass import FirstPass
from server.model.native_layers.assemble import assemble
from server.model.native_layers.model import NativeModel
from server.model.native_layers.recognise import Recognition, recognise
from server.model.native_layers.twin import build_twin
from server.model.program import NO_KERNELS, ModelProgram, Target
from server.model.transformers_hooks.batching_checks import INVARIANT, MAY_BE_NATIVE

log = logging.getLogger(__name__)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # that the kernels compute in


@torch.inference_mode()
def find_program(
    model: PreTrainedModel,
    layers: Mapping[ExpertsModule, ExpertLayer],
    *,
    kernels: Kernels | None,
    longest: int,
    recurrent: Collection[nn.Module],
    special: str | None,
    coded: CodedLinears,
) -> tuple[NativeModel | None, ModelProgram]:
    """Return a model as the native kernels run it, None if they can't, and what runs where.

    Args:
        model: with its weights.
        layers: the model's modules of experts.
        kernels: that may run it.
        longest: tokens of the longest sequence.
        recurrent: modules that keep states.
        special: layers whose attention modules run sequence by sequence, if the kernels do not have all layers.
        coded: the linear layers that are coded; they become plain again if modules run the model.
    """
    dtype = text_body(model).dtype
    if model.device.type != "cpu":
        found: Recognition | ModelProgram = _by_modules(model, special, f"it is computed in {dtype} on {model.device}")
    else:
        found = recognise_model(model, layers, dtype, kernels, longest=longest, special=special)
    if isinstance(found, Recognition):
        assert kernels is not None
        try:
            native = assemble(model, found, layers, kernels=kernels, longest=longest, recurrent=recurrent)
        except UnsupportedLayerError as error:
            found = _by_modules(model, special, str(error))
        else:
            return native, native.program
    coded.restore()
    return None, found


@torch.inference_mode()
def recognise_model(
    model: PreTrainedModel,
    layers: Mapping[ExpertsModule, ExpertLayer],
    dtype: torch.dtype,
    kernels: Kernels | None,
    *,
    longest: int,
    special: str | None,
) -> Recognition | ModelProgram:
    """Find on a model's twin how the native kernels run it; else return what its modules run.

    A narrow twin is tried first, which takes little time and memory.

    Args:
        model: with or without weights.
        layers: the model's modules of experts.
        dtype: to compute in.
        kernels: that may run it.
        longest: tokens of the longest sequence.
        special: layers whose attention modules run sequence by sequence, if the kernels do not have all layers.

    Raises:
        NotBatchableError: the model can't run many sequences in one step.
    """
    if kernels is None or special not in (None, *MAY_BE_NATIVE):
        return _by_modules(model, special, NO_KERNELS if special is None else None)
    if dtype not in DTYPES:
        return _by_modules(model, special, f"it is computed in {dtype}")
    try:
        found = recognise(build_twin(model, longest, is_narrow=True), kernels, longest)
    except Exception:
        log.debug("the narrow twin of %s shows nothing", type(model).__name__, exc_info=True)
        try:
            found = recognise(build_twin(model, longest, is_narrow=False), kernels, longest)
        except UnsupportedLayerError as error:
            return _by_modules(model, special, str(error))
    if special is not None and not found.program.is_native:
        outside = next(each for each in found.program.blocks if each.mixer is not Target.NATIVE)
        return _by_modules(model, special, f"its {outside.name} is not native")
    shapes = (expert_shape(module, layer.layout) for module, layer in layers.items())
    reason = next((shape for shape in shapes if isinstance(shape, str)), None)
    return found if reason is None else _by_modules(model, special, reason)


def check_modules(
    model: PreTrainedModel, first: FirstPass, program: ModelProgram, *, special: str | None, is_deterministic: bool
) -> None:
    """Check a model whose modules run, or of which some do.

    Args:
        model: of transformers.
        first: a pass of it or of its twin.
        program: what runs where.
        special: layers whose attention modules run sequence by sequence.
        is_deterministic: whether each sequence must have the same results in any company.

    Raises:
        NotBatchableError: the model can't run many sequences in one step.
        ModelError: a token's results depend on the other tokens of a step, and must not.
    """
    probe = first.probe
    if probe.indexed and (is_deterministic or probe.indexed.keys() - probe.choosing):
        raise NotBatchableError(f"{type(model).__name__} has {INDEXED}, and {program.reason or 'modules'}")
    if is_deterministic and special is not None:
        raise NotBatchableError(f"{program.reason}, and {INVARIANT}")
    if is_deterministic:
        first.check_invariance()


def _by_modules(model: PreTrainedModel, special: str | None, reason: str | None) -> ModelProgram:
    """Return the program of a model that transformers' modules run, with the reason for it."""
    if special is not None:
        by_sequence = f"{type(model).__name__} has {special}, whose attention runs sequence by sequence"
        reason = by_sequence if reason is None else f"{by_sequence}, because {reason}"
    return ModelProgram.uniform(model, Target.MODULES, reason)
