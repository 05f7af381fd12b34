"""Mirrors of ``src/formats/matrix.h`` and ``src/layers/linear.h``: formats, matrices and products."""

from __future__ import annotations

from ctypes import Structure, c_int32, c_int64, c_void_p
from enum import IntEnum


class Format(IntEnum):
    """The formats of numbers and matrices (``src/formats/table.h``)."""

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


class Size(IntEnum):
    """Numbers that the kernels are compiled with."""

    GROUP = 32  # inputs that share a scale in Q8, Q4 and MXFP4
    BLOCK = 16  # outputs per block in Q8 and Q4
    DECODED = 16  # codes of other formats that are decoded at a time, and share a scale
    CODED_INPUTS = 64  # per block in CODED_BFLOAT16
    MOST_CODED_INPUTS = 1 << 15  # of its matrices
    MOST_PARTS = 2  # matrices that an expert's first one may be stored as
    CACHE_BLOCK = 16  # tokens per block of the KV cache
    MOST_PROJECTIONS = 6  # matrices that a recurrent mixer projects its rows by
    STATE_LANES = 16  # columns of a recurrent state are padded to a multiple of this


class Matrix(Structure):
    _fields_ = [
        ("format", c_int32),
        ("is_transposed", c_int32),
        ("outputs", c_int64),
        ("inputs", c_int64),
        ("data", c_void_p),
        ("scales", c_void_p),
        ("zeros", c_void_p),
        ("rest", c_void_p),
        ("divisor", c_void_p),
        ("order", c_void_p),
        ("row_block", c_int64),
        ("column_block", c_int64),
        ("scale_format", c_int32),
        ("block", c_int32),
    ]


class LinearCall(Structure):
    _fields_ = [
        ("matrix", Matrix),
        ("bias", c_void_p),
        ("x", c_void_p),
        ("y", c_void_p),
        ("rows", c_int64),
        ("x_stride", c_int64),
        ("y_stride", c_int64),
        ("bias_format", c_int32),
        ("x_format", c_int32),
        ("y_format", c_int32),
        ("is_exact", c_int32),
    ]
