"""``quant_method: modelopt``: what NVIDIA's Model Optimizer exports (https://github.com/NVIDIA/Model-Optimizer).

- FP8: ``X.weight`` float8_e4m3fn ``(out, in)``, and ``X.weight_scale`` of the matrix, its outputs, blocks, or, as
  exponents in bytes, groups of 32 inputs (MXFP8);
- NVFP4: ``X.weight`` uint8 ``(out, in / 2)``, two numbers per byte, ``X.weight_scale`` float8_e4m3fn
  ``(out, in / 16)``, and ``X.weight_scale_2``, a float32 that multiplies the scales;
- MXFP4: the same with ``X.weight_scale`` uint8 ``(out, in / 32)``, exponents of two.

The matrices of all experts may be one tensor ``X.weight``, or ``X`` with ``X_weight_scale`` and so on, which for Llama
4 and gpt-oss is ``(experts, in / 2, out)``. Tensors tell their own format, so layers may have different ones. Scales of
activations and of the KV cache are ignored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from expert_store import CheckpointError, TensorSource
from server.kernels.formats import fp4
from server.model.quantised.divided import divisor_of
from server.model.quantised.fp8 import BYTES, MICROSCALING, fp8_matrix, fp8_specs
from server.model.quantised.matrix import Specs, StoredMatrix, expect, require
from server.model.quantised.mxfp4 import fp4_specs, packed_fp4_matrix

WEIGHT = ".weight"
SCALE, FACTOR = "weight_scale", "weight_scale_2"
IGNORED = ("input_scale", "k_scale", "v_scale", "k_bias", "v_bias")
REFUSED = ("pre_quant_scale", "svdquant_lora_a", "svdquant_lora_b")  # change inputs or outputs of a layer
BLOCK = (128, 128)  # of FP8 with scales of blocks
MIXED, UNQUANTISED = "MIXED_PRECISION", ("NONE", "UNQUANTIZED")
NVFP4_GROUP, MXFP4_GROUP = 16, MICROSCALING[1]


def _fp8(out_features: int, in_features: int) -> Specs:
    return fp8_specs((out_features, in_features), (out_features, in_features), torch.float32)


def _fp8_of_outputs(out_features: int, in_features: int) -> Specs:
    return fp8_specs((out_features, in_features), (1, in_features), torch.float32)


def _fp8_of_blocks(out_features: int, in_features: int) -> Specs:
    return fp8_specs((out_features, in_features), BLOCK, torch.float32)


def _mxfp8(out_features: int, in_features: int) -> Specs:
    return fp8_specs((out_features, in_features), MICROSCALING, torch.uint8)


def _nvfp4(out_features: int, in_features: int) -> Specs:
    specs = fp4_specs(out_features, in_features, NVFP4_GROUP, torch.float8_e4m3fn)
    return {**specs, fp4.DIVISOR: (torch.float32, (1,))}


def _mxfp4(out_features: int, in_features: int) -> Specs:
    return fp4_specs(out_features, in_features, MXFP4_GROUP, torch.uint8)


FORMATS: Mapping[str, Callable[[int, int], Specs]] = {  # the tensors of a matrix in a slot, by algorithm
    "FP8": _fp8,
    "FP8_PER_CHANNEL_PER_TOKEN": _fp8_of_outputs,
    **dict.fromkeys(("FP8_PB_WO", "FP8_PB_REAL", "FP8_BLOCK_SCALES"), _fp8_of_blocks),
    "MXFP8": _mxfp8,
    **dict.fromkeys(("NVFP4", "W4A16_NVFP4", "W4A8_NVFP4_FP8"), _nvfp4),
    **dict.fromkeys(("MXFP4", "W4A8_MXFP4_FP8"), _mxfp4),
}


def algorithms(given: Mapping[str, Any]) -> list[str]:
    """Return the algorithms that a quantisation config names, that of most experts first.

    ``quant_algo`` is the one of all layers, or MIXED_PRECISION: then ``quantized_layers`` has each layer's, or
    ``config_groups`` the numbers of each group of layers.
    """
    algorithm = str(given.get("quant_algo") or "").upper()
    if algorithm != MIXED:
        return [algorithm] if algorithm else []
    layers = given.get("quantized_layers") or {
        target: group for group in (given.get("config_groups") or {}).values() for target in group["targets"]
    }
    counts: Counter[str] = Counter()
    for name, layer in layers.items():
        found = str(layer.get("quant_algo") or _of_numbers(layer["weights"])).upper()
        is_of_experts = "experts" in name.split(".")
        counts[found] += 1 + len(layers) * is_of_experts  # more than all other layers
    return [found for found, _ in counts.most_common() if found not in UNQUANTISED]


def _of_numbers(weights: Mapping[str, Any]) -> str:
    """Return the algorithm of a group of layers."""
    kind, bits, size = (weights.get(name) for name in ("type", "num_bits", "group_size"))
    if kind == "float" and bits == 4:  # noqa: PLR2004
        return "MXFP4" if size == MXFP4_GROUP else "NVFP4"
    if kind == "float" and not size:
        return "FP8_PER_CHANNEL_PER_TOKEN" if weights.get("strategy") == "channel" else "FP8"
    return "MXFP8" if kind == "float" and size == MXFP4_GROUP else f"{bits} bits of {kind} in groups of {size}"


class ModelOpt:
    """The scheme of Model Optimizer.

    Args:
        of_experts: the algorithm that the config names for experts.
    """

    dimensions = 2

    def __init__(self, of_experts: str):
        self._of_experts = of_experts

    def name_of(self, codes: TensorSource) -> str | None:
        is_codes = codes.dtype in {torch.uint8, torch.float8_e4m3fn} and not codes.name.endswith(SCALE)
        return codes.name if is_codes else None

    def parts(self, codes: TensorSource, index: Mapping[str, TensorSource]) -> dict[str, TensorSource]:
        prefix = codes.name.removesuffix(WEIGHT) + ("." if codes.name.endswith(WEIGHT) else "_")
        for role in REFUSED:
            if prefix + role in index:
                raise CheckpointError(
                    f"{codes.name} is quantised with {prefix + role}, which is not supported; use a checkpoint in "
                    "plain FP8 or NVFP4"
                )
        parts = {role: index[prefix + role] for role in IGNORED if prefix + role in index}
        parts[SCALE] = require(index, codes, prefix + SCALE)
        if codes.dtype == torch.uint8 and parts[SCALE].dtype == torch.float8_e4m3fn:
            parts[FACTOR] = require(index, codes, prefix + FACTOR)
        return parts

    def matrix(self, codes: TensorSource, parts: Mapping[str, TensorSource]) -> StoredMatrix:
        scale = parts[SCALE]
        if codes.dtype == torch.float8_e4m3fn:
            return fp8_matrix(codes, _without_ones(scale), BLOCK)
        if FACTOR not in parts and scale.dtype not in BYTES:
            raise CheckpointError(
                f"{scale.name} is {str(scale.dtype).removeprefix('torch.')}; {codes.name} is uint8, and needs scales "
                "in float8_e4m3fn (NVFP4) or uint8 (MXFP4)"
            )
        matrix = _fp4_matrix(codes, scale, NVFP4_GROUP if FACTOR in parts else MXFP4_GROUP)
        if FACTOR not in parts:
            return matrix
        factor = parts[FACTOR]
        if factor.shape not in {(), (1,)}:
            expect(factor, (1,), codes)
        return replace(matrix, tensors=(*matrix.tensors, divisor_of(factor)))

    def specs(self, out_features: int, in_features: int) -> Specs:
        return FORMATS[self._of_experts](out_features, in_features)


def _fp4_matrix(codes: TensorSource, scale: TensorSource, group: int) -> StoredMatrix:
    """Build the matrix of codes ``(out, in / 2)``, or ``(in / 2, out)`` if its scales are ``(in / group, out)``."""
    half, out_features = codes.shape
    if scale.shape != (half * 2 // group, out_features):
        return replace(packed_fp4_matrix(codes, scale, group), is_out_in=True)
    upright = packed_fp4_matrix(
        replace(codes, shape=(out_features, half)), replace(scale, shape=scale.shape[::-1]), group
    )
    stored = {fp4.BLOCKS: codes, fp4.SCALES: scale}
    tensors = (
        replace(each, sources=(stored[each.suffix],), make=partial(_transpose, shape=each.shape))
        for each in upright.tensors
    )
    return StoredMatrix(upright.shape, tuple(tensors), is_out_in=True)


def _transpose(read: Sequence[torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
    return read[0].mT.contiguous().view(shape)


def _without_ones(scale: TensorSource) -> TensorSource:
    """Drop the dimensions of blocks from scales ``(blocks of outputs, 1, blocks of inputs, 1)``."""
    is_of_blocks = len(scale.shape) == 2 * len(BLOCK) and scale.shape[1::2] == (1, 1)
    return replace(scale, shape=scale.shape[::2]) if is_of_blocks else scale
