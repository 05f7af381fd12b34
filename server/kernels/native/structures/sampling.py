"""Mirrors of ``src/sampling/sampling.h``: the choice of a token in each row of logits."""

from __future__ import annotations

from ctypes import POINTER, Structure, c_double, c_float, c_int32, c_int64, c_void_p


class RowSampling(Structure):
    _fields_ = [
        ("draw", c_double),
        ("top_p", c_double),
        ("temperature", c_float),
        ("log_min_p", c_float),
        ("top_k", c_int32),
        ("has_masks", c_int32),
    ]


class SamplingCall(Structure):
    _fields_ = [
        ("logits", c_void_p),
        ("rows", POINTER(RowSampling)),
        ("tokens", POINTER(c_int32)),
        ("num_rows", c_int64),
        ("size", c_int64),
        ("stride", c_int64),
    ]
