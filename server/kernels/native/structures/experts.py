"""Mirrors of ``src/layers/experts.h`` and of the activations in ``src/levels/level.h``."""

from __future__ import annotations

from ctypes import Structure, c_float, c_int32, c_int64, c_void_p
from enum import IntEnum

from server.kernels.native.structures.matrices import Matrix


class Activation(IntEnum):
    SILU = 0
    GELU = 1
    GELU_TANH = 2
    RELU = 3
    RELU_SQUARED = 4
    CLAMPED_SWISH = 5
    QUICK_GELU = 6
    SOFT_CAPPED = 7


class Gate(Structure):
    _fields_ = [
        ("activation", c_int32),
        ("has_gate", c_int32),
        ("is_interleaved", c_int32),
        ("alpha", c_float),
        ("limit", c_float),
    ]


class ExpertShape(Structure):
    _fields_ = [
        ("first", Matrix * 2),
        ("second", Matrix),
        ("first_bias", c_int64),
        ("second_bias", c_int64),
        ("gate", Gate),
        ("num_parts", c_int32),
        ("bias_format", c_int32),
    ]


class ExpertBatch(Structure):
    _fields_ = [
        ("slots", c_void_p),
        ("starts", c_void_p),
        ("choices", c_void_p),
        ("x", c_void_p),
        ("outputs", c_void_p),
        ("num_experts", c_int64),
        ("top_k", c_int64),
        ("x_stride", c_int64),
        ("x_format", c_int32),
        ("is_exact", c_int32),
        ("lora", c_void_p),
    ]


class Combination(Structure):
    _fields_ = [
        ("outputs", c_void_p),
        ("weights", c_void_p),
        ("absent", c_void_p),
        ("y", c_void_p),
        ("tokens", c_int64),
        ("top_k", c_int64),
        ("hidden", c_int64),
        ("y_stride", c_int64),
        ("num_absent", c_int64),
        ("weights_format", c_int32),
        ("y_format", c_int32),
    ]
