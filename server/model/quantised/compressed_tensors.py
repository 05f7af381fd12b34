"""``quant_method: compressed-tensors``: the formats of that library (https://github.com/vllm-project/compressed-tensors).

- pack-quantized: ``X.weight_packed`` int32 ``(out, in * bits / 32)`` with the codes of consecutive inputs from the
  lowest bits, ``X.weight_scale`` ``(out, groups)``, optional ``X.weight_zero_point`` ``(out * bits / 32, groups)``;
- int-quantized: ``X.weight`` int8 and ``X.weight_scale`` ``(out, 1)``;
- float-quantized: ``X.weight`` float8_e4m3fn and scales per block, output or matrix;
- nvfp4-pack-quantized and mxfp4-pack-quantized: ``X.weight_packed`` uint8 ``(out, in / 2)``, two numbers per byte,
  ``X.weight_scale`` per group of 16 or 32, and for NVFP4 ``X.weight_global_scale``, which divides the scales.

Activations are not quantised: weights are dequantised, and the settings for activations are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from expert_store import CheckpointError, TensorSource
from server.kernels.formats import fp4
from server.kernels.formats.group_int4 import repack_int4
from server.model.quantised.fp8 import Block, fp8_matrix, fp8_specs
from server.model.quantised.ints import BYTE_MIDDLE, WIDTH, IntTensors, int_matrix, int_specs, unpack
from server.model.quantised.matrix import SlotTensor, Specs, StoredMatrix, expect, require
from server.model.quantised.mxfp4 import fp4_specs, packed_fp4_matrix

PACKED = ".weight_packed"
UNPACKED = (torch.int8, torch.float8_e4m3fn)
INTEGERS = (torch.int8, torch.int32)
OPTIONAL = (  # tensors that belong to the matrix, even if they are not used
    "weight_shape",
    "weight_zero_point",
    "weight_g_idx",
    "input_scale",
    "input_zero_point",
    "input_global_scale",
)
BITS_PER_BYTE = 8
NVFP4_GROUP, MXFP4_GROUP = 16, 32


@dataclass(frozen=True)
class Weights:
    """The settings for weights in a group of the config."""

    is_float: bool
    bits: int
    group: int | None  # inputs per group; None if a scale covers an output or the matrix
    is_symmetric: bool
    is_packed: bool
    has_order: bool  # a group may consist of any inputs
    block: Block | None


class CompressedTensors:
    """The scheme of compressed-tensors.

    Args:
        groups: the settings for weights, at most one for integers and one for float8.
        of_experts: the settings that apply to experts.
    """

    dimensions = 2

    def __init__(self, groups: Sequence[Weights], of_experts: Weights, scale_dtype: torch.dtype):
        self._ints = next((group for group in groups if not group.is_float), None)
        self._fp8 = next((group for group in groups if group.is_float and group.bits == BITS_PER_BYTE), None)
        self._of_experts, self._scale_dtype = of_experts, scale_dtype

    def name_of(self, codes: TensorSource) -> str | None:
        if codes.name.endswith(PACKED):
            return codes.name.removesuffix(PACKED) + ".weight"
        return codes.name if codes.dtype in UNPACKED and codes.name.endswith(".weight") else None

    def parts(self, codes: TensorSource, index: Mapping[str, TensorSource]) -> dict[str, TensorSource]:
        module = codes.name.removesuffix(PACKED).removesuffix(".weight")
        needed = ["weight_scale"]
        if codes.dtype == torch.uint8 and index.get(f"{module}.weight_scale", codes).dtype != torch.uint8:
            needed.append("weight_global_scale")
        if self._ints and codes.dtype in INTEGERS:
            needed += [] if self._ints.is_symmetric else ["weight_zero_point"]
            needed += ["weight_g_idx"] if self._ints.has_order else []
        found = {role: index[f"{module}.{role}"] for role in OPTIONAL if f"{module}.{role}" in index}
        return found | {role: require(index, codes, f"{module}.{role}") for role in needed}

    def matrix(self, codes: TensorSource, parts: Mapping[str, TensorSource]) -> StoredMatrix:
        if codes.dtype == torch.float8_e4m3fn:
            return fp8_matrix(codes, parts["weight_scale"], self._fp8.block if self._fp8 else None)
        if codes.dtype == torch.uint8:
            return _fp4(codes, parts)
        if self._ints is None:
            raise CheckpointError(f"{codes.name} holds integers, but the quantization_config has no integer settings")
        return int_matrix(self._packed(codes, parts, self._ints))

    def _packed(self, codes: TensorSource, parts: Mapping[str, TensorSource], given: Weights) -> IntTensors:
        is_packed = codes.dtype == torch.int32
        bits = given.bits if is_packed else BITS_PER_BYTE
        out_features, in_features = codes.shape[0], codes.shape[1] * (WIDTH // bits if is_packed else 1)
        group = given.group or in_features
        groups = -(-in_features // group)
        expect(parts["weight_scale"], (out_features, groups), codes)
        zero = None if given.is_symmetric else parts["weight_zero_point"]
        order = parts["weight_g_idx"] if given.has_order else None
        if zero is not None:
            expect(zero, (out_features * bits // WIDTH if is_packed else out_features, groups), codes)
        if order is not None:
            expect(order, (in_features,), codes)

        def to_codes(stored: torch.Tensor) -> torch.Tensor:
            if bits == BITS_PER_BYTE:
                return unpack(stored, bits) if is_packed else stored.view(torch.uint8) ^ BYTE_MIDDLE
            return repack_int4.blocks_of_inputs(stored.mT.contiguous())

        def to_zeros(stored: torch.Tensor) -> torch.Tensor:
            return unpack(stored.mT, bits) if is_packed else stored.mT.contiguous().view(torch.uint8) ^ BYTE_MIDDLE

        return IntTensors(
            (out_features, in_features),
            bits,
            group,
            codes,
            parts["weight_scale"],
            zero,
            order,
            to_codes=to_codes,
            to_groups=lambda scale: scale.mT,
            to_zeros=to_zeros,
        )

    def specs(self, out_features: int, in_features: int) -> Specs:
        given, shape = self._of_experts, (out_features, in_features)
        if given.is_float and given.bits == BITS_PER_BYTE:
            return fp8_specs(shape, given.block or (1, in_features), self._scale_dtype)
        if given.is_float:
            is_mxfp4 = given.group == MXFP4_GROUP
            specs = fp4_specs(*shape, given.group or MXFP4_GROUP, torch.uint8 if is_mxfp4 else torch.float8_e4m3fn)
            return specs if is_mxfp4 else {**specs, fp4.DIVISOR: (torch.float32, (1,))}
        group, has_zero = given.group or in_features, not given.is_symmetric
        bits = given.bits if given.is_packed else BITS_PER_BYTE
        return int_specs(shape, bits, group, self._scale_dtype, has_zero=has_zero, has_order=given.has_order)


def _fp4(codes: TensorSource, parts: Mapping[str, TensorSource]) -> StoredMatrix:
    scale, divisor = parts["weight_scale"], parts.get("weight_global_scale")
    matrix = packed_fp4_matrix(codes, scale, MXFP4_GROUP if divisor is None else NVFP4_GROUP)
    if divisor is None:
        return matrix
    expect(divisor, (1,), codes)
    tensor = SlotTensor(fp4.DIVISOR, divisor.dtype, (1,), (divisor,))
    return StoredMatrix(matrix.shape, (*matrix.tensors, tensor))
