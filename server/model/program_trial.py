"""Finds what would run where, from a config alone: tries a few layers on random weights."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from expert_store import ExpertCatalog
from server.kernels.compute_pool import ComputePool
from server.kernels.native.library import Kernels
from server.model.architecture import decoder_layers, packs_sequences, text_body
from server.model.checkpoint.config_checks import config_errors
from server.model.errors import NotBatchableError
from server.model.program import ENCODER_REASON, NO_KERNELS, ModelProgram, Target
from server.model.transformers_hooks.batching_checks import check_batchable, check_indexers
from server.model.trunk import Trunk
from server.model.trunk_loader import build_model, empty_experts, load_trunk_weights

MOST_TOKENS = 256  # of the vocabulary, whose size changes no layer
SPARE_NUMBERS = 1 << 16  # by which parameters that share random numbers begin in different places


@torch.inference_mode()
def find_program(
    config: PreTrainedConfig,
    dtype: torch.dtype,
    kernels: Kernels | None,
    catalog: ExpertCatalog,
    max_model_len: int | None = None,
    *,
    is_deterministic: bool = False,
) -> ModelProgram:
    """Return what serving a model runs where, without its weights.

    The trial has the first layers, as many as show one of each kind, in their full size.

    Args:
        config: of the model.
        dtype: the compute dtype.
        kernels: the native ones; None if there are none.
        catalog: the model's experts.
        max_model_len: the requested length.
        is_deterministic: whether each sequence must have the same results in any company.

    Raises:
        ModelError: the model can't be served.
    """
    config = deepcopy(config)
    text = config.get_text_config()
    text.vocab_size = min(MOST_TOKENS, text.vocab_size)
    if getattr(text, "pad_token_id", None) is not None:
        text.pad_token_id = min(text.pad_token_id, text.vocab_size - 1)
    model = build_model(config, dtype)
    if packs_sequences(type(model)):
        return ModelProgram.uniform(model, Target.MODULES, ENCODER_REASON)
    try:
        check_batchable(model, is_deterministic=is_deterministic, has_kernels=kernels is not None)
        if kernels is None:
            if is_deterministic:
                check_indexers(model, NO_KERNELS)
            return ModelProgram.uniform(model, Target.MODULES, NO_KERNELS)
        kinds = _keep_one_of_each_kind(model)
        trunk = _try(model, dtype, kernels, catalog, max_model_len)
        if is_deterministic and not trunk.facts.program.is_native:
            check_indexers(model, trunk.facts.program.reason)
    except NotBatchableError as error:
        return ModelProgram.uniform(build_model(config, dtype, None), Target.TRANSFORMERS, str(error))
    program = trunk.facts.program
    if not program.has_native:
        return ModelProgram.uniform(build_model(config, dtype), Target.MODULES, program.reason)
    blocks = dict(zip(kinds, program.blocks, strict=False))
    return ModelProgram(tuple(blocks[kind] for kind in kinds))


def _try(
    model: PreTrainedModel, dtype: torch.dtype, kernels: Kernels, catalog: ExpertCatalog, max_model_len: int | None
) -> Trunk:
    layers = empty_experts(model)
    load_trunk_weights(model, _random_weights(model), dtype, type(model).__name__)
    _initialise_constants(model)
    model.eval()
    with config_errors(model.config):
        return Trunk(model, catalog, layers, pool=ComputePool(1, kernels), max_model_len=max_model_len)


def _initialise_constants(model: PreTrainedModel) -> None:
    """Give buffers of several dimensions, which are constants, the values that the model computes for them."""
    for module in model.modules():
        constants = [buffer for buffer in module.buffers(recurse=False) if buffer.ndim > 1]
        if not constants or any(True for _ in module.parameters(recurse=False)):
            continue
        for buffer in constants:
            buffer._is_hf_initialized = False  # noqa: SLF001
        model._init_weights(module)  # noqa: SLF001


def _keep_one_of_each_kind(model: PreTrainedModel) -> Sequence[Hashable]:
    """Remove the layers behind the first of the last kind; return the kind of each layer before."""
    body: Any = text_body(model)
    layers = decoder_layers(body)
    if layers is None:
        return ()
    settings = getattr(model.config.get_text_config(), "layer_types", None) or [None] * len(layers)
    kinds = [(kind, _kind_of(layer)) for kind, layer in zip(settings, layers, strict=False)]
    del layers[1 + max(kinds.index(kind) for kind in kinds) :]
    return kinds


def _kind_of(layer: nn.Module) -> Hashable:
    """Return what distinguishes a layer from others: its modules, their parameters and settings, but its number."""
    return tuple(
        (
            name,
            type(module),
            tuple((parameter, tuple(value.shape)) for parameter, value in module.named_parameters(recurse=False)),
            tuple(
                (key, value)
                for key, value in vars(module).items()
                if isinstance(value, bool | int | float | str) and key != "layer_idx"
            ),
        )
        for name, module in layer.named_modules()
    )


def _random_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    state, random = model.state_dict(), torch.Generator().manual_seed(0)
    numbers = torch.empty((1 << 20) + SPARE_NUMBERS).normal_(generator=random)
    weights = {}
    for name, value in state.items():
        if not value.numel():  # experts, which are not run
            continue
        first = int(torch.randint(SPARE_NUMBERS, (), generator=random))
        own = numbers[first : first + value.numel()]
        if not value.is_floating_point():
            weights[name] = torch.ones(value.shape, dtype=value.dtype)
        elif value.ndim > 1:
            weights[name] = _repeated((own * value.shape[-1] ** -0.5).to(value.dtype), value.shape)
        else:
            own = own * 0.1 + ("norm" in name and name.endswith("weight"))
            weights[name] = _repeated(own.to(value.dtype), value.shape)
    return weights


def _repeated(numbers: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Return a tensor of a shape that repeats some numbers."""
    return numbers.repeat(-(-shape.numel() // len(numbers)))[: shape.numel()].view(shape)
