"""Checks of a checkpoint's metadata files before transformers reads them, and sentences for what it refuses."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.integrations.heterogeneity.configuration_utils import AmbiguousGlobalPerLayerAttributeError

from expert_store import ExpertStoreError, check_metadata_file, read_json_object
from server.model.checkpoint.number_ranges import number_out_of_range
from server.model.device_errors import device_errors
from server.model.errors import ModelError, in_mlx_format
from server.model.layer_settings import layer_configs
from server.model.quantised import mlx

log = logging.getLogger(__name__)

CONFIG = "config.json"
OBJECTS = {  # files that transformers expects to be JSON objects
    CONFIG,
    "added_tokens.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
}
SUFFIXES = {".jinja", ".json", ".model", ".tiktoken", ".txt"}  # of the files that transformers may read
TEMPLATES = "additional_chat_templates"
DTYPES = ("dtype", "torch_dtype")
QUANTISATION = ("quantization_config", "compression_config")  # may name dtypes of other kinds
TOP_K = ("num_experts_per_tok", "moe_topk", "moe_top_k", "moe_k", "top_k_experts")
HEADS = ("num_attention_heads", "num_key_value_heads")
LATENTS = "kv_lora_rank"
GROUPS = ("n_group", "num_group")
TOP_GROUPS = "topk_group"
WINDOWS = ("sliding_window", "sliding_window_size", "attention_chunk_size")
# Types of layers without a window.
WITHOUT_WINDOW = frozenset({"full_attention", "attention", "linear_attention", "mamba", "conv", "moe"})
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def check_files(folder: Path) -> None:
    """Check the files that transformers may read from a checkpoint's folder, except weights.

    Raises:
        CheckpointError: a file is not a regular one, is too large, or is not JSON of the form that it should have; the
            message names it.
    """
    for path in sorted([*folder.glob("*"), *folder.glob(f"{TEMPLATES}/*")]):
        if path.name in OBJECTS:
            read_json_object(path)
        elif path.suffix in SUFFIXES and path.exists() and not path.is_dir():
            check_metadata_file(path)


def read_config_values(folder: Path) -> dict[str, Any]:
    """Return the values of ``config.json``, with dtypes that there are and numbers that a model may have.

    Raises:
        CheckpointError: the file can't be read, or is not a JSON object.
        ModelError: a number is out of its range, a dtype is not one, or MLX converted the checkpoint in a way that is
            not supported.
    """
    values = read_json_object(folder / CONFIG)
    given = values.get(mlx.SETTINGS)
    if isinstance(given, dict) and "bits" in given and not mlx.is_converted(values.get("model_type"), given):
        raise in_mlx_format(folder.name)
    wrong = number_out_of_range(values)
    if wrong is not None:
        raise _unusable(folder.name, wrong)
    kind = values.get("model_type")
    if not isinstance(kind, str | None):
        raise _unusable(folder.name, f"model_type is {kind!r}, not a text")
    for part in _parts(values):
        _check_layer_settings(part, folder.name)
        for name in QUANTISATION:
            if not isinstance(part.get(name), Mapping | None):
                raise _unusable(folder.name, f"{name} is {part[name]!r}, not an object")
        for name in DTYPES:
            if not _is_dtype(part.get(name)):
                raise _unusable(folder.name, f"{name} is {part[name]!r}, not a type of floating-point numbers")
    return values


def _check_layer_settings(values: Mapping[str, Any], name: str) -> None:
    """Check that settings by layer are of layers that there are."""
    count, by_layer = values.get("num_hidden_layers"), values.get("per_layer_config")
    if not isinstance(by_layer, Mapping) or type(count) is not int:
        return
    beyond = [each for each in by_layer if each.isdecimal() and int(each) >= count]
    if beyond:
        raise _unusable(name, f"num_hidden_layers is {count}, but per_layer_config has a layer {beyond[0]}")


def check_config(config: PreTrainedConfig, name: str) -> None:
    """Check the numbers of a config, as transformers has read them.

    Raises:
        ModelError: a value can't be that of a model; the message names it.
    """
    text = config.get_text_config()
    if not isinstance(text, PreTrainedConfig):
        raise _unusable(name, "its text_config is not one that transformers reads")
    for layer in layer_configs(text):
        _check_windows(layer, name)
        _check_heads(layer, name)
        counts = (getattr(layer, field, None) for field in EXPERTS)
        num_experts = max((count for count in counts if type(count) is int), default=None)
        for field in TOP_K:
            value = getattr(layer, field, None)
            if type(value) is int and num_experts is not None and not 1 <= value <= num_experts:
                raise _unusable(
                    name, f"{field} is {value}, not a number from 1 to the {num_experts} experts of a layer"
                )
        chosen = {field: getattr(layer, field) for field in TOP_K if hasattr(layer, field)}
        is_missing = bool(chosen) and all(value is None for value in chosen.values())
        if is_missing and num_experts is not None and num_experts > 1:
            raise _unusable(name, f"{min(chosen)} is missing, the number of experts that a token goes to")
        for field in GROUPS:
            _check_groups(layer, field, num_experts, name)


def _check_heads(layer: Any, name: str) -> None:
    """Check that as many heads share each head of keys and values."""
    heads, kv_heads = (getattr(layer, field, None) for field in HEADS)
    if getattr(layer, LATENTS, None):  # all heads share a latent, whatever the second number says
        return
    if type(heads) is int and type(kv_heads) is int and kv_heads > 0 and heads % kv_heads:
        raise _unusable(name, f"{HEADS[0]} is {heads}, not a multiple of {HEADS[1]}, which is {kv_heads}")


def _check_windows(layer: Any, name: str) -> None:
    """Check the windows of layers, which hold a token's own key at least.

    Where no layer has a window, transformers writes 0 for some types.
    """
    kinds = getattr(layer, "layer_types", None)
    if kinds and WITHOUT_WINDOW.issuperset(kinds):
        return
    for field in WINDOWS:
        value = getattr(layer, field, None)
        if type(value) is int and value < 1:
            raise _unusable(name, f"{field} is {value}, not 1 or more; null leaves the window out")


def _check_groups(layer: Any, field: str, num_experts: int | None, name: str) -> None:
    """Check how many groups of experts a layer has, and how many of these a token chooses from."""
    count, chosen = getattr(layer, field, None), getattr(layer, TOP_GROUPS, None)
    if type(count) is not int or num_experts is None:
        return
    if count < 1 or num_experts % count:
        raise _unusable(name, f"{field} is {count}, which does not divide the {num_experts} experts of a layer")
    if type(chosen) is int and not 1 <= chosen <= count:
        raise _unusable(name, f"{TOP_GROUPS} is {chosen}, not a number from 1 to the {count} groups of a layer")


@contextmanager
def config_errors(config: PreTrainedConfig) -> Iterator[None]:
    """Raise a ModelError instead of the errors that transformers and torch raise for the values of a config."""
    try:
        with device_errors(config.model_type):
            yield
    except (ModelError, ExpertStoreError):
        raise
    except Exception as error:
        log.debug("building %s failed", config.model_type, exc_info=True)
        raise ModelError(
            f"{CONFIG} describes no {config.model_type} that can be built: {reason_of(error, config.to_dict())}; "
            "compare it with the one of the original model"
        ) from error


def reason_of(error: Exception, values: Mapping[str, Any]) -> str:
    """Return an error as a phrase of one line; a failed look-up names the field of the config with the unknown value.

    Args:
        values: of the config.
    """
    if isinstance(error, AmbiguousGlobalPerLayerAttributeError):
        setting = str(error).split("'")[1]
        return f"{setting} differs between layers (per_layer_config), which transformers does not compute for this type"
    if isinstance(error, KeyError) and error.args:
        fields = [name for name, value in _scalars(values) if value == error.args[0]]
        if fields:
            return f"{fields[0]} is {error.args[0]!r}, which transformers does not know"
    return " ".join(str(error).split()) or type(error).__name__


def _unusable(name: str, reason: str) -> ModelError:
    return ModelError(f"{CONFIG} of {name} can't be used: {reason}; download the checkpoint again")


def _is_dtype(value: Any) -> bool:
    dtype = getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else None
    return value is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point)


def _parts(values: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the values of a config and of the configs within it."""
    yield values
    for name, value in values.items():
        if isinstance(value, Mapping) and name not in QUANTISATION:
            yield from _parts(value)


def _scalars(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the values of a config and of its parts that hold no others, with their names."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _scalars(value)
        elif isinstance(value, list):
            yield from ((name, each) for each in value if not isinstance(each, Mapping | list))
        else:
            yield str(name), value
