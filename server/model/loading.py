"""A checkpoint folder to a trunk: built on the meta device, with nothing but trunk weights loaded."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.initialization import no_init_weights
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils.generic import ContextManagers

from expert_store import ExpertCatalog, TensorSource, find_shards, is_pack, open_pack, read_index, read_tensor
from server.kernels.expert import ExpertsModule
from server.kernels.pool import ComputePool
from server.progress import progress

from .adopted import adopt_experts
from .architecture import config_of_class, find_class, settle_implementations, writer_config
from .checkpoint import config_folder
from .checkpoint_map import experts_modules, layer_numbers, map_checkpoint
from .errors import ModelError, NotBatchableError, incomplete
from .packed_trunk import fill_linears, packed_bytes, replace_linears
from .packing import map_pack
from .quantised.matrix import StoredTensor, stored_parts
from .quantised.scheme import find_scheme, tell_text
from .rope import take_base_of_a_part
from .seam import IMPLEMENTATION
from .solo import SoloTrunk
from .support import check_layers
from .temperature import tell_positions
from .trunk import Trunk

log = logging.getLogger(__name__)

CPU = torch.device("cpu")
Admit = Callable[[int, ExpertCatalog], None]
TrunkSources = Mapping[str, TensorSource | StoredTensor]


def load_trunk(
    folder: Path,
    dtype: torch.dtype,
    device: torch.device = CPU,
    is_deterministic: bool = False,
    pool: ComputePool | None = None,
    max_model_len: int | None = None,
    admit: Admit = lambda *_: None,
) -> Trunk | SoloTrunk:
    """Build a model on the meta device and load its trunk onto a device; the experts stay on disk.

    What can't run many sequences in one step runs them one after the other, by transformers' own attention and cache.

    Args:
        folder: of a hub checkpoint, or packed.
        is_deterministic: whether steps run with batch-invariant arithmetic.
        pool: threads that steps are computed by; none is the caller's alone.
        max_model_len: that is asked for, where the model's rotary frequencies depend on it.
        admit: is given what the trunk will take and the experts, before any weight is read, and may raise.

    Raises:
        ModelError: the architecture or the checkpoint's format is not supported, or trunk tensors are missing.
        CheckpointError: the checkpoint's files are damaged or incomplete.
    """
    try:
        return Trunk(*_load(folder, dtype, device, IMPLEMENTATION, admit), is_deterministic, pool, max_model_len)
    except NotBatchableError as error:
        reason = str(error)
    log.info("requests are computed one after the other, by transformers' attention and cache: %s", reason)
    return SoloTrunk(*_load(folder, dtype, device, None, admit), reason, is_deterministic, pool, max_model_len)


def _load(
    folder: Path, dtype: torch.dtype, device: torch.device, attention: str | None, admit: Admit
) -> tuple[PreTrainedModel, ExpertCatalog, dict[ExpertsModule, int]]:
    """The model without its experts, where these are, and their layers."""
    pack = open_pack(folder) if is_pack(folder) else None
    config = read_config(pack.data_folder if pack else folder)
    model = build_model(config, dtype, attention)
    if attention == IMPLEMENTATION:
        check_layers(model)
    places = map_pack(model, pack) if pack else map_checkpoint(model, read_index(find_shards(folder)))
    modules = experts_modules(model)
    numbers = layer_numbers(list(modules))
    for module in modules.values():
        parameters = dict(module.named_parameters(recurse=False))
        module.parameter_shapes = {name: tuple(value.shape[1:]) for name, value in parameters.items()}
        for name in parameters:
            delattr(module, name)
            setattr(module, name, torch.empty(0))  # or some models' initialisation would miss what is gone
        module._is_hf_initialized = True  # noqa: SLF001
    if places.unused:
        log.warning("%d tensors have no place in %s, %s first", len(places.unused), config.model_type, places.unused[0])
    linears = replace_linears(model, places.packed)
    admit(_resident_bytes(places.trunk, dtype) + packed_bytes(places.packed), places.catalog)
    state = _read_trunk(places.trunk, dtype)
    plan = LoadStateDictConfig(
        dtype=dtype,
        dtype_plan=model._get_dtype_plan(dtype),  # noqa: SLF001
        weight_mapping=get_model_conversion_mapping(model),
    )
    info, _ = convert_and_load_state_dict_in_model(model, state, plan)
    if info.mismatched_keys or info.conversion_errors or info.error_msgs:
        mismatches = [
            f"{name} has shape {list(found)}, not {list(wanted)}" for name, found, wanted in info.mismatched_keys
        ]
        problems = [*sorted(mismatches), *info.conversion_errors.values(), *info.error_msgs]
        raise ModelError(f"{folder.name} does not fit its config.json: {problems[0]}")
    info = type(model)._finalize_model_loading(model, plan, info)  # noqa: SLF001
    if info.missing_keys:
        raise incomplete(folder.name, sorted(info.missing_keys))
    fill_linears(linears, places.packed)
    if config.is_encoder_decoder:
        model.generation_config = _generation_config(config, config_folder(folder))
    model.to(device).eval()
    return model, places.catalog, {module: numbers[name] for name, module in modules.items()}


def _resident_bytes(trunk: TrunkSources, dtype: torch.dtype) -> int:
    """What a trunk takes, if all of it comes in one dtype."""
    shapes = [
        (len(source.matrices), *source.matrices[0].shape) if isinstance(source, StoredTensor) else source.shape
        for source in trunk.values()
    ]
    return sum(map(math.prod, shapes)) * dtype.itemsize


def _read_trunk(trunk: TrunkSources, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    state = {}
    sizes = {name: sum(part.extent.nbytes for part in stored_parts(source)) for name, source in trunk.items()}
    with progress("loading the trunk", sum(sizes.values())) as shown:
        for name, source in trunk.items():
            state[name] = read_tensor(source) if isinstance(source, TensorSource) else source.dequantise().to(dtype)
            shown.advance(sizes[name])
    return state


def _generation_config(config: PreTrainedConfig, folder: Path) -> GenerationConfig:
    """What says which tokens a decoder begins with."""
    if not (folder / "generation_config.json").is_file():
        return GenerationConfig.from_model_config(config)
    try:
        return GenerationConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"generation_config.json of {folder.name} can't be used: {error}") from error


def read_config(folder: Path) -> PreTrainedConfig:
    """The config of a checkpoint that Greenroom can serve, packed or not.

    Raises:
        ModelError: there is none, it is for nothing that transformers writes text with, or its weights are quantised
            in a way that is not supported.
    """
    folder = config_folder(folder)
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json; give a folder of a Hugging Face checkpoint")
    try:
        whole = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        config = writer_config(whole)
        tell_text(whole, config)
        take_base_of_a_part(config, json.loads((folder / "config.json").read_text("utf-8")))
    except StrictDataclassError as error:  # its lines say which field, and what it should be
        raise ModelError(f"config.json of {folder.name} can't be used: {' '.join(str(error).split())}") from error
    except (ValueError, OSError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"config.json of {folder.name} can't be used: {reason}") from error
    find_class(config)
    find_scheme(config, folder.name)
    return config


def build_model(
    config: PreTrainedConfig, dtype: torch.dtype, attention: str | None = IMPLEMENTATION
) -> PreTrainedModel:
    """A model of no weights on the meta device, whose text's experts come to us.

    Args:
        attention: where the text's attention goes; None is where transformers would let it go.
    """
    settle_implementations(config, attention)
    model_class: Any = find_class(config)
    try:
        return _build(config, model_class, dtype, _RangesOnCpu())
    except RuntimeError:  # it joins ranges with tensors of the meta device
        return _build(config, model_class, dtype, nullcontext())


def _build(
    config: PreTrainedConfig, model_class: Any, dtype: torch.dtype, ranges: AbstractContextManager[object]
) -> PreTrainedModel:
    contexts = model_class.get_init_context(dtype, False, False, False)
    with ContextManagers([*contexts, no_init_weights(), ranges]):
        model: PreTrainedModel = model_class(config_of_class(config, model_class))
        adopt_experts(model)
        tell_positions(model)
    return model


class _RangesOnCpu(TorchFunctionMode):
    """Lets ``torch.arange`` make its numbers on the CPU, as transformers lets ``torch.linspace``.

    On the meta device torch imports SymPy and its compiler for it, 60 MiB; so it does to initialise weights.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        return func(*args, **({"device": CPU, **options} if func is torch.arange else options))
