"""Mirrors of ``src/layers/decode_run.h``: steps that run one after another."""

from __future__ import annotations

from ctypes import Structure, c_float, c_int32, c_int64, c_void_p

from server.kernels.native.structures.layers import Norm
from server.kernels.native.structures.sampling import SamplingCall


class DecodeResults(Structure):
    """The results of a step, for the caller."""

    _fields_ = [("sampling", SamplingCall), ("chosen", c_void_p), ("counts", c_void_p)]


class DecodeRun(Structure):
    _fields_ = [
        ("layers", c_void_p),
        ("num_layers", c_int64),
        ("step", c_void_p),
        ("sequences", c_void_p),
        ("token_ids", c_void_p),
        ("head", c_void_p),
        ("embedding", c_void_p),
        ("embedding_norm", Norm),
        ("even", DecodeResults),
        ("odd", DecodeResults),
        ("num_streams", c_int64),
        ("embedding_scale", c_float),
        ("unused", c_int32),
    ]
