"""Loads a checkpoint as a trunk: builds the model on the meta device and loads only the trunk's weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch.overrides import TorchFunctionMode
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.initialization import no_init_weights
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils.generic import ContextManagers

from expert_store import (
    ExpertCatalog,
    TensorReads,
    TensorSource,
    use_huge_pages,
)
from server.collection import without_collection
from server.kernels.compute_pool import ComputePool
from server.kernels.expert import ExpertsModule
from server.kernels.native.library import Kernels
from server.model.architecture import (
    config_of_class,
    config_parts,
    find_model_class,
    packs_sequences,
    set_implementations,
)
from server.model.attention.temperature_tuning import pass_positions
from server.model.checkpoint.checkpoint import Checkpoint
from server.model.checkpoint.config_checks import (
    config_errors,
    reason_of,
)
from server.model.checkpoint.open_checkpoint import open_checkpoint
from server.model.checkpoint.packed_trunk import fill_matrices, packed_bytes, replace_matrices
from server.model.checkpoint.tensor_map import experts_modules, layer_numbers
from server.model.coded_experts import code_experts
from server.model.device_errors import device_errors
from server.model.errors import ModelError, NotBatchableError, incomplete
from server.model.experts.replacements import replace_experts
from server.model.hooks import IMPLEMENTATION
from server.model.quantised.matrix import StoredTensor, read_order, stored_parts
from server.model.sequential.sequential_trunk import SequentialTrunk
from server.model.switch_capacity import set_switch_capacity
from server.model.transformers_hooks.batching_checks import check_batchable
from server.model.trunk import Trunk
from server.progress import progress

if TYPE_CHECKING:
    from server.model.encoders.encoder_trunk import EncoderTrunk

META_KERNELS = "torch._meta_registrations"  # torch's kernels in Python for the meta device

log = logging.getLogger(__name__)

CPU = torch.device("cpu")
MemoryCheck = Callable[[int, ExpertCatalog], None]  # takes the trunk's bytes and the experts; may raise
AnyTrunk: TypeAlias = "Trunk | SequentialTrunk | EncoderTrunk"
TrunkSources = Mapping[str, TensorSource | StoredTensor]


def load_trunk(
    checkpoint: Path | Checkpoint,
    dtype: torch.dtype,
    device: torch.device = CPU,
    *,
    is_deterministic: bool = False,
    pool: ComputePool | None = None,
    max_model_len: int | None = None,
    switch_capacity: float | None = None,
    check_memory: MemoryCheck = lambda *_: None,
    sequential_reason: str | None = None,
    codes_experts: bool = True,
) -> AnyTrunk:
    """Build a model on the meta device and load its trunk onto a device; the experts stay on disk.

    A model that can't run many sequences in one step runs them one at a time, with transformers' attention and cache.

    Args:
        checkpoint: an open checkpoint, or where it is.
        is_deterministic: run steps with batch-invariant arithmetic.
        pool: threads that compute steps; None if only the caller's thread does.
        max_model_len: the requested length, on which the model's rotary frequencies may depend.
        switch_capacity: factor of Switch routers, instead of the model's own.
        check_memory: called with the trunk's bytes and the experts before any weight is read; may raise.
        sequential_reason: why sequences run one at a time, if that is known before.
        codes_experts: code experts where kernels gain from it; they then can't be copied from slot to slot.

    Raises:
        ModelError: the architecture or the checkpoint's format is not supported, or trunk tensors are missing.
        CheckpointError: the checkpoint's files are damaged or incomplete.
    """
    if isinstance(checkpoint, Path):
        checkpoint = open_checkpoint(checkpoint)
    trunk: AnyTrunk
    options: Any = {
        "check_memory": check_memory,
        "switch_capacity": switch_capacity,
        "is_deterministic": is_deterministic,
        "kernels": None if pool is None else pool.kernels,
        "codes_experts": codes_experts and device.type == "cpu",
    }
    if sequential_reason is None:
        try:
            loaded = _load(checkpoint, dtype, device, IMPLEMENTATION, **options)
            with config_errors(loaded.model.config):
                trunk = _trunk_class(loaded.model)(
                    loaded.model,
                    loaded.catalog,
                    loaded.layers,
                    is_deterministic,
                    pool=pool,
                    max_model_len=max_model_len,
                )
        except NotBatchableError as error:
            sequential_reason = str(error)
    if sequential_reason is not None:
        loaded = _load(checkpoint, dtype, device, None, **options)
        with config_errors(loaded.model.config):
            trunk = SequentialTrunk(
                loaded.model,
                loaded.catalog,
                loaded.layers,
                reason=sequential_reason,
                is_deterministic=is_deterministic,
                pool=pool,
                max_model_len=max_model_len,
            )
    trunk.num_parameters = loaded.num_parameters
    if device.type == "cpu":
        use_huge_pages(trunk.tensors)
    log.info("%s", trunk.facts.program.describe())
    return trunk


def _trunk_class(model: PreTrainedModel) -> type[Trunk | EncoderTrunk]:
    if not packs_sequences(type(model)):
        return Trunk
    from server.model.encoders.encoder_trunk import EncoderTrunk  # noqa: PLC0415  few servers need it

    return EncoderTrunk


class _Loaded(NamedTuple):
    model: PreTrainedModel  # without its experts
    catalog: ExpertCatalog
    layers: dict[ExpertsModule, int]  # of its modules of experts
    num_parameters: int


def _load(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    attention: str | None,
    *,
    check_memory: MemoryCheck,
    switch_capacity: float | None,
    is_deterministic: bool,
    kernels: Kernels | None,
    codes_experts: bool,
) -> _Loaded:
    """Load a model without its experts."""
    config = checkpoint.read_config()
    model = build_model(config, dtype, attention)
    if attention == IMPLEMENTATION:
        check_batchable(model, is_deterministic=is_deterministic, has_kernels=kernels is not None)
    with without_collection():
        tensors = checkpoint.map(model)
    if tensors.unused:
        log.warning("%s does not use %d tensors: %s ...", config.model_type, len(tensors.unused), tensors.unused[0])
    num_parameters = count_parameters(model)
    layers = empty_experts(model)
    catalog = code_experts(tensors.catalog, layers, dtype, kernels) if codes_experts else tensors.catalog
    matrices = replace_matrices(model, tensors.packed)
    check_memory(_resident_bytes(tensors.trunk, dtype) + packed_bytes(tensors.packed), catalog)
    load_trunk_weights(model, _read_trunk(tensors.trunk, dtype), dtype, checkpoint.name)
    fill_matrices(matrices, tensors.packed)
    if config.is_encoder_decoder:
        model.generation_config = _generation_config(config, checkpoint)
    with device_errors(config.model_type):
        model.to(device)
    model.eval()
    if switch_capacity is not None:
        set_switch_capacity(model, switch_capacity)
    return _Loaded(model, catalog, layers, num_parameters)


def count_parameters(model: PreTrainedModel) -> int:
    """Return the number of a model's parameters, those of experts included and shared ones once.

    Args:
        model: the model on the meta device; this ties its weights.
    """
    model.tie_weights()
    return sum(parameter.numel() for parameter in model.parameters())


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


def _resident_bytes(trunk: TrunkSources, dtype: torch.dtype) -> int:
    """The bytes of a loaded trunk whose weights are all of one dtype."""
    return sum(math.prod(source.shape) for source in trunk.values()) * dtype.itemsize


def _read_trunk(trunk: TrunkSources, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    state = {}
    sizes = {name: sum(part.extent.nbytes for part in stored_parts(source)) for name, source in trunk.items()}
    parts = [part for source in trunk.values() for part in read_order(source)]
    with progress("loading the trunk", sum(sizes.values())) as shown, TensorReads(parts) as reads:
        for name, source in trunk.items():
            tensor = reads.take(source) if isinstance(source, TensorSource) else source.read(dtype, reads.take)
            if tensor.numel() and tensor.is_floating_point() and tensor.min().isnan():
                raise ModelError(f"{name} holds NaN (not a number); download the checkpoint again")
            state[name] = tensor
            shown.advance(sizes[name])
    return state


def _generation_config(config: PreTrainedConfig, checkpoint: Checkpoint) -> GenerationConfig:
    """Make transformers' generation config, which names the tokens that a decoder begins with."""
    values = checkpoint.generation_values()
    if values is None:
        return GenerationConfig.from_model_config(config)
    try:
        return GenerationConfig.from_dict(values)
    except Exception as error:  # transformers' checks raise many kinds
        reason = reason_of(error, values)
        raise ModelError(f"generation_config.json of {checkpoint.name} can't be used: {reason}") from error


def build_model(
    config: PreTrainedConfig, dtype: torch.dtype, attention: str | None = IMPLEMENTATION
) -> PreTrainedModel:
    """Build a model without weights on the meta device, whose text part calls Greenroom's experts implementation.

    Args:
        attention: the attention implementation of the text part; None keeps transformers' choice.

    Raises:
        ModelError: the config describes no model that can be built.
    """
    set_implementations(config, attention)
    model_class: Any = find_model_class(config)
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
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        return func(*args, **({"device": CPU, **options} if func is torch.arange else options))
