"""Written by `src/interface.py` from the C++ headers named here, whose comments describe what stands here."""

from __future__ import annotations

from ctypes import POINTER, Array, Structure, c_double, c_float, c_int32, c_int64, c_void_p

from server.kernels.native.structures.fields import Address, field, structure


# sampling/sampling.h
@structure
class RowSampling(Structure):
    draw: float = field(c_double)
    top_p: float = field(c_double)
    temperature: float = field(c_float)
    log_min_p: float = field(c_float)
    top_k: int = field(c_int32)
    has_masks: int = field(c_int32)


@structure
class SamplingCall(Structure):
    logits: Address = field(c_void_p)
    rows: Array[RowSampling] = field(POINTER(RowSampling))
    tokens: Array[c_int32] = field(POINTER(c_int32))
    num_rows: int = field(c_int64)
    size: int = field(c_int64)
    stride: int = field(c_int64)
