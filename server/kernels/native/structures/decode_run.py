"""Written by `src/interface.py` from the C++ headers named here, whose comments describe what stands here."""

from __future__ import annotations

from ctypes import Structure, c_float, c_int32, c_int64, c_void_p

from server.kernels.native.structures.fields import Address, field, structure
from server.kernels.native.structures.layers import Norm
from server.kernels.native.structures.sampling import SamplingCall


# layers/decode_run.h
@structure
class DecodeResults(Structure):
    sampling: SamplingCall = field(SamplingCall)
    chosen: Address = field(c_void_p)
    counts: Address = field(c_void_p)


@structure
class DecodeRun(Structure):
    layers: Address = field(c_void_p)
    num_layers: int = field(c_int64)
    step: Address = field(c_void_p)
    sequences: Address = field(c_void_p)
    token_ids: Address = field(c_void_p)
    head: Address = field(c_void_p)
    embedding: Address = field(c_void_p)
    embedding_norm: Norm = field(Norm)
    even: DecodeResults = field(DecodeResults)
    odd: DecodeResults = field(DecodeResults)
    num_streams: int = field(c_int64)
    embedding_scale: float = field(c_float)
    unused: int = field(c_int32)
