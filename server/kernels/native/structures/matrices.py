"""Written by `src/interface.py` from the C++ headers named here, whose comments describe what stands here."""

from __future__ import annotations

from ctypes import Structure, c_int32, c_int64, c_void_p
from enum import IntEnum

from server.kernels.native.structures.fields import Address, field, structure


# sizes.h
class Size(IntEnum):
    GROUP = 32
    BLOCK = 16
    DECODED = 16
    CODED_INPUTS = 64
    MOST_CODED_INPUTS = 32768
    MOST_PARTS = 2
    CACHE_BLOCK = 16
    MOST_PROJECTIONS = 6
    STATE_LANES = 16


# formats/matrix.h
class Format(IntEnum):
    FLOAT32 = 0
    BFLOAT16 = 1
    FLOAT16 = 2
    Q8 = 3
    Q4 = 4
    MXFP4 = 5
    FP8 = 6
    E8M0 = 7
    INT8 = 8
    INT4 = 9
    FP4 = 10
    Q4_0 = 11
    Q4_1 = 12
    Q5_0 = 13
    Q5_1 = 14
    IQ4_NL = 15
    BLOCK_MXFP4 = 16
    Q2_K = 17
    Q3_K = 18
    Q4_K = 19
    Q5_K = 20
    Q6_K = 21
    IQ4_XS = 22
    IQ2_XXS = 23
    IQ2_XS = 24
    IQ3_XXS = 25
    IQ1_S = 26
    IQ3_S = 27
    IQ2_S = 28
    IQ1_M = 29
    TQ1_0 = 30
    TQ2_0 = 31
    CODED_BFLOAT16 = 32
    LOOKUP4 = 33


# formats/matrix.h
@structure
class Matrix(Structure):
    format: int = field(c_int32)
    is_transposed: int = field(c_int32)
    outputs: int = field(c_int64)
    inputs: int = field(c_int64)
    data: Address = field(c_void_p)
    scales: Address = field(c_void_p)
    zeros: Address = field(c_void_p)
    rest: Address = field(c_void_p)
    divisor: Address = field(c_void_p)
    order: Address = field(c_void_p)
    row_block: int = field(c_int64)
    column_block: int = field(c_int64)
    scale_format: int = field(c_int32)
    block: int = field(c_int32)


# layers/linear.h
@structure
class LinearCall(Structure):
    matrix: Matrix = field(Matrix)
    bias: Address = field(c_void_p)
    x: Address = field(c_void_p)
    y: Address = field(c_void_p)
    rows: int = field(c_int64)
    x_stride: int = field(c_int64)
    y_stride: int = field(c_int64)
    bias_format: int = field(c_int32)
    x_format: int = field(c_int32)
    y_format: int = field(c_int32)
    is_exact: int = field(c_int32)
