"""Finds the scheme for a checkpoint's ``quantization_config``, or refuses it and names alternatives."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from expert_store import read_json_object
from server.model.errors import ModelError
from server.model.quantised import mlx, modelopt
from server.model.quantised.bitsandbytes import BitsAndBytes
from server.model.quantised.compressed_tensors import CompressedTensors, Weights
from server.model.quantised.fp8 import MICROSCALING, Fp8
from server.model.quantised.gptq import Awq, Gptq
from server.model.quantised.matrix import Scheme
from server.model.quantised.modelopt import ModelOpt, algorithms
from server.model.quantised.mxfp4 import Mxfp4

INSTEAD = "use the bf16 checkpoint, or one in mxfp4, nvfp4, fp8, compressed-tensors, AWQ or GPTQ"
SETTINGS = ("quantization_config", "compression_config")  # fields of configs
INTEGER_BITS = (4, 8)
FULL_BITS = 16  # of weights or activations that are not quantised
DEFAULT_BLOCK = (128, 128)  # of float8, if the config does not name one
GPTQ_FORMATS = ("gptq", "gptq_v2")
WITHOUT_GROUPS = ("channel", "tensor", "block")
PACKED_FORMATS = ("pack-quantized", "mixed-precision")
MODELOPT = ("modelopt", "modelopt_fp4", "modelopt_mixed", "modelopt_mxfp8")  # names in configs
BITSANDBYTES = "bitsandbytes"
MODELOPT_FILE, QUANTO_FILE = "hf_quant_config.json", "quanto_qmap.json"
FORMATS = (
    *PACKED_FORMATS,
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
)


def quantisation_of(config: PreTrainedConfig) -> dict[str, Any] | None:
    """Return the quantisation settings of a config or its text config; None if it is not quantised."""
    by_mlx: Any = getattr(config, mlx.SETTINGS, None)
    if mlx.is_converted(config.model_type, by_mlx):  # their copy in SETTINGS names no method
        return {**by_mlx, "quant_method": "mlx"}
    named = (getattr(part, name, None) for part in (config, config.get_text_config()) for name in SETTINGS)
    given = next((found for found in named if found is not None), None)
    if given is None:
        return None
    return dict(given) if isinstance(given, Mapping) else {"quant_method": given}


def forget_quantisation(config: PreTrainedConfig) -> None:
    """Remove the quantisation settings of a config and its text config, which are not those of the weights."""
    for part in (config, config.get_text_config()):
        for name in (*SETTINGS, mlx.SETTINGS):
            vars(part).pop(name, None)


def quantisation_beside_config(folder: Path) -> dict[str, Any] | None:
    """Return the quantisation settings of a checkpoint whose tool writes them to a file of their own; None without.

    Raises:
        CheckpointError: the file can't be read.
    """
    if os.path.lexists(folder / MODELOPT_FILE):
        found = read_json_object(folder / MODELOPT_FILE)
        given = found.get("quantization")
        return {**(given if isinstance(given, dict) else found), "quant_method": "modelopt"}
    return {"quant_method": "quanto"} if os.path.lexists(folder / QUANTO_FILE) else None


def share_quantisation(full_config: PreTrainedConfig, config: PreTrainedConfig, folder: Path) -> None:
    """Copy the quantisation settings of a checkpoint to the part of its config that is served, and its text config.

    Raises:
        CheckpointError: a file of such settings can't be read.
    """
    given = quantisation_of(full_config) or quantisation_of(config) or quantisation_beside_config(folder)
    if given is not None:
        for part in (config, config.get_text_config()):
            part.quantization_config = given


def find_scheme(config: PreTrainedConfig, name: str) -> Scheme | None:
    """Return the scheme of a checkpoint; None if it is not quantised.

    Args:
        name: the checkpoint's name, for error messages.

    Raises:
        ModelError: the method, or a variant of it, is not supported.
    """
    given = quantisation_of(config)
    if given is None:
        return None
    method = str(given.get("quant_method", "an unknown method"))
    stored = getattr(config.get_text_config(), "dtype", None) or torch.bfloat16
    readers: dict[str, Callable[[Mapping[str, Any], torch.dtype], Scheme]] = {
        "mxfp4": lambda *_: Mxfp4(),
        "fp8": _fp8,
        "mxfp8": _fp8,
        "compressed-tensors": _compressed_tensors,
        **dict.fromkeys(MODELOPT, _modelopt),
        "gptq": _gptq,
        "awq": _awq,
        "auto-round": _auto_round,
        BITSANDBYTES: _bitsandbytes,
        "mlx": lambda given, _: mlx.Mlx(mlx.layers_of(given)),
    }
    if method not in readers:
        raise ModelError(f"{name} is quantised by {method}, which is not supported; {INSTEAD}")
    try:
        return readers[method](given, stored)
    except _UnsupportedError as error:
        raise ModelError(f"{name} is quantised by {method} {error}, which is not supported; {INSTEAD}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"the quantization_config of {name} ({method}) is invalid: {error!r}; {INSTEAD}") from error


class _UnsupportedError(Exception):
    """The unsupported variant of a method, as a phrase that follows the method's name."""


def _fp8(given: Mapping[str, Any], _: torch.dtype) -> Scheme:
    if given.get("expert_dtype", "fp8") != "fp8":
        raise _UnsupportedError(f"with experts in {given['expert_dtype']}")
    if given.get("fmt", "e4m3") not in {"e4m3", "float8_e4m3fn"}:
        raise _UnsupportedError(f"in the format {given['fmt']}")
    is_mxfp8 = given["quant_method"] == "mxfp8"
    block = given.get("weight_block_size", MICROSCALING if is_mxfp8 else DEFAULT_BLOCK)
    return Fp8(_block(block), torch.uint8 if is_mxfp8 else torch.float32)


def _modelopt(given: Mapping[str, Any], _: torch.dtype) -> Scheme:
    found = algorithms(given)
    unknown = sorted({*found} - modelopt.FORMATS.keys())
    if unknown or not found:
        raise _UnsupportedError(f"as {', '.join(unknown) or given.get('quant_algo')}")
    return ModelOpt(of_experts=found[0])


def _gptq(given: Mapping[str, Any], _: torch.dtype) -> Scheme:
    bits, layout = int(given["bits"]), given.get("checkpoint_format") or given.get("format") or "gptq"
    if bits not in INTEGER_BITS:
        raise _UnsupportedError(f"with {bits} bits")
    if layout not in GPTQ_FORMATS:
        raise _UnsupportedError(f"in the format {layout}")
    rules = (given.get("dynamic") or {}).items()
    if any(changes and not rule.startswith("-:") for rule, changes in rules):  # "-:" excludes modules
        raise _UnsupportedError("with rules for single modules (dynamic)")
    has_order = bool(given.get("desc_act", True))
    return Gptq(bits, _group(given["group_size"]), is_v1=layout == "gptq", has_order=has_order)


def _awq(given: Mapping[str, Any], _: torch.dtype) -> Scheme:
    bits, version = int(given.get("bits", given.get("w_bit", 4))), str(given.get("version", "gemm")).lower()
    if bits != INTEGER_BITS[0]:
        raise _UnsupportedError(f"with {bits} bits")
    if version != "gemm":
        raise _UnsupportedError(f"for the {version} kernel")
    group = _group(given.get("group_size", given.get("q_group_size", 128)))
    return Awq(group, has_zero=bool(given.get("zero_point", True)))


def _auto_round(given: Mapping[str, Any], stored: torch.dtype) -> Scheme:
    """AutoRound's own format is GPTQ's or AWQ's, by another name."""
    layout, bits = str(given.get("packing_format", "auto_round:auto_gptq")), int(given["bits"])
    if given.get("data_type", "int") != "int" or not layout.startswith("auto_round"):
        raise _UnsupportedError(f"in the format {layout} of {given.get('data_type')}")
    if int(given.get("act_bits") or FULL_BITS) < FULL_BITS:
        raise _UnsupportedError(f"with activations of {given['act_bits']} bits")
    settings = {name: given.get(name) for name in ("bits", "group_size", "sym")}
    for rule in (given.get("extra_config") or {}).values():
        if int(rule.get("bits", bits)) < FULL_BITS and any(
            rule.get(name, settings[name]) != settings[name] for name in settings
        ):
            raise _UnsupportedError("with settings for single modules (extra_config)")
    if "awq" in layout:
        return _awq({**given, "version": "gemm"}, stored)
    if bits not in INTEGER_BITS:
        raise _UnsupportedError(f"with {bits} bits")
    is_v1 = "gptq" in layout and "gptqmodel" not in layout
    return Gptq(bits, _group(given["group_size"]), is_v1=is_v1, has_order=False)


def _bitsandbytes(given: Mapping[str, Any], _: torch.dtype) -> Scheme:
    is_4bit, storage = bool(given.get("load_in_4bit")), str(given.get("bnb_4bit_quant_storage") or "uint8")
    if is_4bit == bool(given.get("load_in_8bit")):
        raise _UnsupportedError("with neither 4 nor 8 bits")
    if is_4bit and storage.removeprefix("torch.") != "uint8":
        raise _UnsupportedError(f"with codes stored as {storage}")
    return BitsAndBytes(INTEGER_BITS[0] if is_4bit else INTEGER_BITS[1])


def _compressed_tensors(given: Mapping[str, Any], stored: torch.dtype) -> Scheme:
    if (given.get("transform_config") or {}).get("config_groups"):
        raise _UnsupportedError("with rotations of activations (transform_config)")
    if (given.get("sparsity_config") or {}).get("format", "dense") != "dense":
        raise _UnsupportedError("with sparse weights")
    groups = [group for group in given["config_groups"].values() if group["weights"]]
    if not groups:
        raise _UnsupportedError("without any weights")
    weights = [_weights(group, str(group.get("format") or given.get("format"))) for group in groups]
    ints = {(each.bits, each.group, each.is_symmetric) for each in weights if not each.is_float}
    if len(ints) > 1 or len({each.block for each in weights if each.is_float and each.bits == INTEGER_BITS[1]}) > 1:
        raise _UnsupportedError("with several settings of one type")
    names_experts = [any("experts" in target for target in group["targets"]) for group in groups]
    is_rule = [all(target.startswith("re:") for target in group["targets"]) for group in groups]
    ranks = sorted(range(len(groups)), key=lambda number: (not names_experts[number], is_rule[number]))
    return CompressedTensors(weights, weights[ranks[0]], stored)


def _weights(group: Mapping[str, Any], layout: str) -> Weights:
    if layout not in FORMATS:
        raise _UnsupportedError(f"in the format {layout}")
    weights = group["weights"]
    is_float, bits, size = weights.get("type") == "float", int(weights["num_bits"]), weights.get("group_size")
    if bits not in INTEGER_BITS:
        raise _UnsupportedError(f"with {bits} bits")
    return Weights(
        is_float=is_float,
        bits=bits,
        group=_group(size) if size and weights.get("strategy") not in WITHOUT_GROUPS else None,
        is_symmetric=bool(weights.get("symmetric", True)),
        is_packed=layout in PACKED_FORMATS,
        has_order=weights.get("actorder") in {"group", True},
        block=_block(weights.get("block_structure")),
    )


def _group(size: Any) -> int | None:
    """The group size in inputs; None for -1, which means all inputs."""
    return int(size) if int(size) > 0 else None


def _block(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    rows, columns = (int(step) for step in size)
    return rows, columns
