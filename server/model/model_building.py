"""Builds models of transformers without weights, and puts weights into them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.initialization import no_init_weights
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils.generic import ContextManagers

from server.kernels.expert import ExpertsModule
from server.model.architecture import config_of_class, config_parts, find_model_class, set_implementations
from server.model.attention.temperature_tuning import pass_positions
from server.model.checkpoint.config_checks import config_errors
from server.model.checkpoint.tensor_map import experts_modules, layer_numbers
from server.model.errors import ModelError, incomplete
from server.model.experts.replacements import replace_experts
from server.model.hooks import IMPLEMENTATION

MOST_IN_RANGES = 1 << 22  # numbers of a tensor that is made of ranges while a model is built
META_KERNELS = "torch._meta_registrations"  # torch's kernels in Python for the meta device
CPU = torch.device("cpu")


def build_model(
    config: PreTrainedConfig,
    dtype: torch.dtype,
    attention: str | None = IMPLEMENTATION,
    *,
    model_class: Any = None,
) -> PreTrainedModel:
    """Build a model without weights on the meta device, whose text part calls Greenroom's experts implementation.

    Args:
        attention: the attention implementation of the text part; None keeps transformers' choice.
        model_class: of transformers; None for the one of the config.

    Raises:
        ModelError: the config describes no model that can be built.
    """
    set_implementations(config, attention)
    model_class = model_class or find_model_class(config)
    with config_errors(config):
        try:
            return _build(config, model_class, dtype, _RangesOnCpu())
        except RuntimeError:  # the model combines ranges with tensors on the meta device, or needs more kernels for it
            import_module(META_KERNELS)
            return _build(config, model_class, dtype, nullcontext())


def _build(
    config: PreTrainedConfig, model_class: Any, dtype: torch.dtype, ranges: AbstractContextManager[object]
) -> PreTrainedModel:
    contexts = model_class.get_init_context(dtype, False, False, False)
    with ContextManagers([*contexts, no_init_weights(), ranges, _dtype_of_all_parts(config, dtype)]):
        model: PreTrainedModel = model_class(config_of_class(config, model_class))
        replace_experts(model)
        pass_positions(model)
    return model


@contextmanager
def _dtype_of_all_parts(config: PreTrainedConfig, dtype: torch.dtype) -> Iterator[None]:
    """Give a config and its parts one dtype for a while; transformers builds each part in the dtype that it names."""
    stored = [(part, part.dtype) for part in config_parts(config)]
    try:
        for part, _ in stored:
            part.dtype = dtype
        yield
    finally:
        for part, before in stored:
            part.dtype = before


class _RangesOnCpu(TorchFunctionMode):
    """Makes ``torch.arange`` compute on the CPU, as transformers does for ``torch.linspace``.

    On the meta device torch imports SymPy and its compiler for it, which take 60 MiB, as they do to initialise weights.

    Raises:
        RuntimeError: a tensor that is made of ranges is a large one, whose place is the meta device.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func is torch.arange:
            numbers = [arg for arg in args if isinstance(arg, int | float)]
            _check_range(max(numbers, default=0) - min(0, *numbers))
            return func(*args, **{"device": CPU, **options})
        shapes: list[tuple[int, ...]] = [
            each.shape for each in args if isinstance(each, torch.Tensor) and each.device == CPU
        ]
        if len(shapes) > 1:
            with suppress(ValueError):  # such as of matrices, which are not broadcast
                shapes.append(np.broadcast_shapes(*shapes))  # torch's own function needs its compiler
        _check_range(max(map(math.prod, shapes), default=0))
        return func(*args, **options)


def _check_range(count: float) -> None:
    if count > MOST_IN_RANGES:
        raise RuntimeError(f"{count} numbers are too many to compute while a model is built")


def empty_experts(model: PreTrainedModel) -> dict[ExpertsModule, int]:
    """Take the weights out of the experts modules, which get them from the store; returns each module's layer."""
    modules = experts_modules(model)
    numbers = layer_numbers(list(modules))
    for module in modules.values():
        parameters = dict(module.named_parameters(recurse=False))
        module.parameter_shapes = {name: tuple(value.shape[1:]) for name, value in parameters.items()}
        for name in parameters:
            delattr(module, name)
            setattr(module, name, torch.empty(0))  # some models' initialisation reads the attribute
        module._is_hf_initialized = True  # noqa: SLF001
    return {module: numbers[name] for name, module in modules.items()}


def load_trunk_weights(model: PreTrainedModel, state: dict[str, torch.Tensor], dtype: torch.dtype, name: str) -> None:
    """Put the trunk's tensors into the model, converted and renamed by transformers."""
    plan = LoadStateDictConfig(
        dtype=dtype,
        dtype_plan=model._get_dtype_plan(dtype),  # noqa: SLF001
        weight_mapping=get_model_conversion_mapping(model),
    )
    info, _ = convert_and_load_state_dict_in_model(model, state, plan)
    if info.mismatched_keys or info.conversion_errors or info.error_msgs:
        mismatches = [
            f"{key} has shape {list(found)}, not {list(wanted)}" for key, found, wanted in info.mismatched_keys
        ]
        problems = [*sorted(mismatches), *info.conversion_errors.values(), *info.error_msgs]
        raise ModelError(f"{name} does not match its config.json: {problems[0]}; download the checkpoint again")
    info = type(model)._finalize_model_loading(model, plan, info)  # noqa: SLF001
    if info.missing_keys:
        raise incomplete(name, sorted(info.missing_keys))
