"""Written by `src/interface.py` from the C++ headers named here, whose comments describe what stands here."""

from __future__ import annotations

from ctypes import Array, Structure, c_float, c_int32, c_int64, c_void_p
from enum import IntEnum

from server.kernels.native.structures.fields import Address, field, structure
from server.kernels.native.structures.matrices import Matrix


# levels/level.h
class Activation(IntEnum):
    SILU = 0
    GELU = 1
    GELU_TANH = 2
    RELU = 3
    RELU_SQUARED = 4
    CLAMPED_SWISH = 5
    QUICK_GELU = 6
    SOFT_CAPPED = 7
    LIMITED_SILU = 8


@structure
class Gate(Structure):
    activation: int = field(c_int32)
    has_gate: int = field(c_int32)
    is_interleaved: int = field(c_int32)
    alpha: float = field(c_float)
    limit: float = field(c_float)


# layers/experts.h
@structure
class ExpertShape(Structure):
    first: Array[Matrix] = field(Matrix * 2)
    second: Matrix = field(Matrix)
    first_bias: int = field(c_int64)
    second_bias: int = field(c_int64)
    gate: Gate = field(Gate)
    num_parts: int = field(c_int32)
    bias_format: int = field(c_int32)


# layers/experts.h
@structure
class ExpertBatch(Structure):
    slots: Address = field(c_void_p)
    starts: Address = field(c_void_p)
    choices: Address = field(c_void_p)
    x: Address = field(c_void_p)
    outputs: Address = field(c_void_p)
    num_experts: int = field(c_int64)
    top_k: int = field(c_int64)
    x_stride: int = field(c_int64)
    x_format: int = field(c_int32)
    is_exact: int = field(c_int32)
    lora: Address = field(c_void_p)


# layers/experts.h
@structure
class Combination(Structure):
    outputs: Address = field(c_void_p)
    weights: Address = field(c_void_p)
    absent: Address = field(c_void_p)
    y: Address = field(c_void_p)
    tokens: int = field(c_int64)
    top_k: int = field(c_int64)
    hidden: int = field(c_int64)
    y_stride: int = field(c_int64)
    num_absent: int = field(c_int64)
    weights_format: int = field(c_int32)
    y_format: int = field(c_int32)
