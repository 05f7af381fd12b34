"""Finds what runs where: a model's layers on native kernels, or all of it through the modules of transformers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel

from server.kernels.expert import ExpertsModule
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
from server.model.native_layers.twin import Twin, build_twin
from server.model.program import NO_KERNELS, ModelProgram, Target
from server.model.transformers_hooks.batching_checks import INVARIANT, MAY_BE_NATIVE

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
        kernels = None
    twin = partial(build_twin, model, layers, longest)
    found = recognise_model(model, twin, dtype, kernels, longest=longest, special=special)
    if isinstance(found, Recognition):
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
    twin: Callable[[], Twin],
    dtype: torch.dtype,
    kernels: Kernels | None,
    *,
    longest: int,
    special: str | None,
) -> Recognition | ModelProgram:
    """Find on a model's twin how the native kernels run it; else return what its modules run.

    Args:
        model: with or without weights.
        twin: returns the model's twin.
        dtype: to compute in.
        kernels: that may run it.
        longest: tokens of the longest sequence.
        special: layers whose attention modules run sequence by sequence, if the kernels do not have all layers.
    """
    if kernels is None or special not in (None, *MAY_BE_NATIVE):
        return _by_modules(model, special, NO_KERNELS if special is None else None)
    if dtype not in DTYPES:
        return _by_modules(model, special, f"it is computed in {dtype}")
    try:
        found = recognise(twin(), kernels, longest)
    except UnsupportedLayerError as error:
        return _by_modules(model, special, str(error))
    if special is not None and not found.program.is_native:
        outside = next(each for each in found.program.blocks if each.mixer is not Target.NATIVE)
        return _by_modules(model, special, f"its {outside.name} is not native")
    return found


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
