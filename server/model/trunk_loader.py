"""Loads a checkpoint as a trunk: builds the model on the meta device and loads only the trunk's weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from expert_store import (
    ExpertCatalog,
    TensorSource,
    use_huge_pages,
)
from server.collection import without_collection
from server.device import is_gpu
from server.kernels.compute_pool import ComputePool
from server.kernels.expert import ExpertsModule
from server.kernels.formats import coded_bfloat16
from server.kernels.native.library import Kernels
from server.model.architecture import packs_sequences
from server.model.checkpoint.checkpoint import Checkpoint
from server.model.checkpoint.config_checks import (
    config_errors,
    reason_of,
)
from server.model.checkpoint.packed_trunk import fill_matrices, packed_bytes, replace_matrices
from server.model.checkpoint.tensor_map import check_trunk_tensors, renamed
from server.model.coded.experts import code_experts
from server.model.coded.linears import CodedWeight, code_loaded, code_weight, drop_weight, fill, linears_to_code
from server.model.contradictions import check_rotated_width, naming_keys
from server.model.device_errors import device_errors
from server.model.errors import ModelError, NotBatchableError
from server.model.experts.switch_capacity import set_switch_capacity
from server.model.hooks import IMPLEMENTATION
from server.model.model_building import CPU, build_model, empty_experts, load_trunk_weights
from server.model.opening.open_checkpoint import open_checkpoint
from server.model.quantised.conversions import Conversion, convert_all
from server.model.quantised.matrix import StoredTensor, read_order, stored_parts
from server.model.sequential.sequential_trunk import SequentialTrunk
from server.model.transformers_hooks.batching_checks import MAY_BE_NATIVE, check_batchable, find_special_layers
from server.model.trunk.trunk import Trunk
from server.progress import progress

if TYPE_CHECKING:
    from server.model.encoders.encoder_trunk import EncoderTrunk

log = logging.getLogger(__name__)

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
        "num_threads": torch.get_num_threads() if pool is None or is_gpu(device) else pool.num_threads,
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
    num_threads: int,
    codes_experts: bool,
) -> _Loaded:
    """Load a model without its experts."""
    config = checkpoint.read_config()
    model = build_model(config, dtype, attention)
    check_rotated_width(model, checkpoint.name)
    if attention == IMPLEMENTATION:
        check_batchable(model, is_deterministic=is_deterministic, has_kernels=kernels is not None)
    with without_collection(), naming_keys(model):
        tensors = checkpoint.map(model)
    if tensors.unused:
        log.warning("%s does not use %d tensors: %s ...", config.model_type, len(tensors.unused), tensors.unused[0])
    with naming_keys(model):  # what is missing would be allocated in the config's sizes
        check_trunk_tensors(checkpoint.name, model, tensors)
    num_parameters = count_parameters(model)
    layers = empty_experts(model)
    catalog = code_experts(tensors.catalog, layers, dtype, kernels) if codes_experts else tensors.catalog
    trunk_bytes = _trunk_bytes(model, tensors.trunk, dtype) + packed_bytes(tensors.packed)
    matrices = replace_matrices(model, tensors.packed)
    check_memory(trunk_bytes, catalog)
    runs_natively = attention == IMPLEMENTATION and device.type == "cpu" and _may_be_native(model)
    _fill_trunk(
        model,
        tensors.trunk,
        dtype,
        kernels=kernels if runs_natively else None,
        num_threads=num_threads,
        name=checkpoint.name,
    )
    fill_matrices(matrices, tensors.packed, num_threads)
    if config.is_encoder_decoder:
        model.generation_config = _generation_config(config, checkpoint)
    with device_errors(config.model_type):
        model.to(device)
    model.eval()
    if switch_capacity is not None:
        set_switch_capacity(model, switch_capacity)
    return _Loaded(model, catalog, layers, num_parameters)


def _fill_trunk(
    model: PreTrainedModel,
    trunk: TrunkSources,
    dtype: torch.dtype,
    *,
    kernels: Kernels | None,
    num_threads: int,
    name: str,
) -> None:
    """Read the trunk's tensors into a model; its large linear layers are coded while the next ones are read.

    Args:
        kernels: that may run the layers; None if modules do.
        num_threads: that convert what is read.
        name: of the checkpoint.
    """
    linears = linears_to_code(model, kernels)
    coded = {stored: linears[own] for stored, own in renamed(model, trunk).items() if own in linears}
    plain: dict[str, torch.Tensor] = {}
    codes: dict[str, CodedWeight] = {}
    for stored, tensor in _read_trunk(trunk, dtype, coded, num_threads):
        if isinstance(tensor, torch.Tensor):
            plain[stored] = tensor
        else:
            codes[stored] = tensor
    if kernels is not None:
        for stored in codes:
            drop_weight(coded[stored], kernels)
    load_trunk_weights(model, plain, dtype, name)
    for stored, weight in codes.items():
        fill(coded[stored], weight)
    if kernels is not None and linears:
        code_loaded(linears, kernels)


def _may_be_native(model: PreTrainedModel) -> bool:
    return not packs_sequences(type(model)) and find_special_layers(model) in (None, *MAY_BE_NATIVE)


def count_parameters(model: PreTrainedModel) -> int:
    """Return the number of a model's parameters, those of experts included and shared ones once.

    Args:
        model: the model on the meta device; this ties its weights.
    """
    model.tie_weights()
    return sum(parameter.numel() for parameter in model.parameters())


def _trunk_bytes(model: PreTrainedModel, trunk: TrunkSources, dtype: torch.dtype) -> int:
    """The bytes of a loaded trunk whose weights are all of one dtype, and of the tables that the model computes."""
    stored = model.state_dict().keys()
    tables: int = sum(buffer.nbytes for name, buffer in model.named_buffers() if name not in stored)
    return sum(math.prod(source.shape) for source in trunk.values()) * dtype.itemsize + tables


def _read_trunk(
    trunk: TrunkSources, dtype: torch.dtype, coded: Mapping[str, nn.Linear], num_threads: int
) -> Iterator[tuple[str, torch.Tensor | CodedWeight]]:
    """Yield the tensors of the trunk with their names.

    Args:
        coded: the linear layers whose weights are to be coded, by the names of these.
        num_threads: that convert what is read.
    """
    conversions: list[Conversion[torch.Tensor | CodedWeight]] = []
    for name, source in trunk.items():
        if name in coded:
            convert = partial(_coded, name, source, coded[name].weight)
            conversions.append(Conversion([*read_order(source)], convert, is_copy=True))
        else:
            conversions.append(Conversion([*read_order(source)], partial(_converted, name, source, dtype)))
    sizes = [sum(part.extent.nbytes for part in stored_parts(source)) for source in trunk.values()]
    with progress("loading the trunk", sum(sizes)) as shown:
        for name, nbytes, tensor in zip(trunk, sizes, convert_all(conversions, num_threads), strict=True):
            yield name, tensor
            shown.advance(nbytes)


def _converted(
    name: str, source: TensorSource | StoredTensor, dtype: torch.dtype, read: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Return a tensor of the trunk.

    Args:
        read: what it is made of, in the order of reading.
    """
    if isinstance(source, TensorSource):
        (tensor,) = read
    else:
        parts = iter(read)
        tensor = source.read(dtype, lambda _: next(parts))
    if tensor.numel() and tensor.is_floating_point() and tensor.min().isnan():
        raise ModelError(f"{name} holds NaN (not a number); download the checkpoint again")
    return tensor


def _coded(
    name: str, source: TensorSource | StoredTensor, weight: torch.Tensor, read: Sequence[torch.Tensor]
) -> torch.Tensor | CodedWeight:
    """Return the weight of a linear layer coded, or a plain copy if too little would be saved.

    Args:
        weight: that of the layer, on the meta device.
        read: what it is made of, in the order of reading.
    """
    tensor = _converted(name, source, weight.dtype, read).to(weight.dtype)
    is_possible = tensor.shape == weight.shape and coded_bfloat16.takes(tensor)  # transformers reports other shapes
    found = code_weight(tensor) if is_possible else None
    return tensor.clone() if found is None else found


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
