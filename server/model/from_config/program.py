"""Finds what would run where, from a config alone."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from expert_store import ExpertCatalog
from server.kernels.compute_pool import ComputePool
from server.kernels.native.library import Kernels
from server.model.architecture import packs_sequences
from server.model.attention.rope import max_served_length
from server.model.checkpoint.config_checks import config_errors
from server.model.cuda_layers.compile import compile_for_cuda
from server.model.declarations.declaration import Declaration
from server.model.errors import NotBatchableError
from server.model.experts.expert_layer import expert_layers
from server.model.model_building import build_model, empty_experts
from server.model.program import ENCODER_REASON, NO_KERNELS, ModelProgram, Target
from server.model.recognition.find_program import (
    check_modules,
    declaration_on_gpu,
    on_device,
    program_of,
    recognise_model,
)
from server.model.recognition.twin import build_twin
from server.model.transformers_hooks.batching_checks import check_batchable, check_indexers, find_special_layers

CPU = torch.device("cpu")


@torch.inference_mode()
def program_of_config(
    config: PreTrainedConfig,
    dtype: torch.dtype,
    kernels: Kernels | None,
    catalog: ExpertCatalog,
    max_model_len: int | None = None,
    *,
    is_deterministic: bool = False,
    device: torch.device = CPU,
    triton_device: torch.device | None = None,
) -> ModelProgram:
    """Return what serving a model runs where, without its weights.

    It is found on the model's twin, as when the model is loaded.

    Args:
        config: of the model.
        dtype: the compute dtype.
        kernels: the native ones; None if there are none.
        catalog: the model's experts.
        max_model_len: the requested length.
        is_deterministic: whether each sequence must have the same results in any company.
        device: that computes.
        triton_device: the same, if Triton's kernels may run there.

    Raises:
        ModelError: the model can't be served.
    """
    model = build_model(deepcopy(config), dtype)
    if packs_sequences(type(model)):
        return ModelProgram.uniform(model, Target.MODULES, ENCODER_REASON)
    try:
        check_batchable(model, is_deterministic=is_deterministic, has_kernels=kernels is not None)
        if kernels is None:
            if is_deterministic:
                check_indexers(model, NO_KERNELS)
            longest = max_served_length(model.config.get_text_config(), max_model_len)
            on_gpu = _on_gpu(model, dtype, triton_device, longest, is_deterministic=is_deterministic)
            by_modules = ModelProgram.uniform(model, Target.MODULES, NO_KERNELS)
            return on_gpu or (by_modules if device.type == CPU.type else on_device(model, device, dtype))
        with config_errors(config):
            program = _try(model, dtype, kernels, catalog, max_model_len, is_deterministic=is_deterministic)
        if is_deterministic and not program.is_native:
            check_indexers(model, program.reason)
    except NotBatchableError as error:
        return ModelProgram.uniform(build_model(deepcopy(config), dtype, None), Target.TRANSFORMERS, str(error))
    return program


def _try(
    model: PreTrainedModel,
    dtype: torch.dtype,
    kernels: Kernels,
    catalog: ExpertCatalog,
    max_model_len: int | None,
    *,
    is_deterministic: bool,
) -> ModelProgram:
    layers = expert_layers(empty_experts(model), catalog, ComputePool(1, kernels))
    longest = max_served_length(model.config.get_text_config(), max_model_len)
    special = find_special_layers(model)
    found = recognise_model(model, layers, dtype, kernels, longest=longest, special=special)
    program = program_of(model, found) if isinstance(found, Declaration) else found
    if not program.is_native:
        first = build_twin(model, longest).first
        check_modules(model, first, program, special=special, is_deterministic=is_deterministic)
    return program


def _on_gpu(
    model: PreTrainedModel, dtype: torch.dtype, device: torch.device | None, longest: int, *, is_deterministic: bool
) -> ModelProgram | None:
    """Return what a model with parts that Triton's kernels run has where, by a twin of its widths; None for no such."""
    special = find_special_layers(model)
    declared = declaration_on_gpu(model, device, longest, special=special, is_deterministic=is_deterministic)
    if declared is None:
        return None
    twin, together = build_twin(model, longest), declared.layers_in_one
    layers = {own: declared.layers[index * together :][:together] for index, own in enumerate(twin.layer_of)}
    own_layers = [layer for own in sorted(layers) for layer in layers[own]]
    replaces_mixers = special is None and not twin.first.probe.choosing
    found = compile_for_cuda(
        twin.model.to(dtype),
        replace(declared, layers=own_layers),
        twin.first.states,
        twin.recurrent,
        replaces_mixers=replaces_mixers,
    )
    targets = [layer.targets for layer in found]
    return ModelProgram(tuple(each for own in twin.layer_of for each in targets[own * together :][:together]))
