"""Written by `src/interface.py` from the C++ headers named here, whose comments describe what stands here."""

from __future__ import annotations

from ctypes import Array, Structure, c_float, c_int32, c_int64, c_void_p
from enum import IntEnum

from server.kernels.native.structures.fields import Address, field, structure


# adapters/lora_router.h
@structure
class LoraRouter(Structure):
    candidates: Address = field(c_void_p)
    top_k: int = field(c_int32)
    is_signed: int = field(c_int32)
    temperature: float = field(c_float)
    unused: int = field(c_int32)


@structure
class LoraRouting(Structure):
    routers: Address = field(c_void_p)
    router_of_token: Address = field(c_void_p)
    totals: Address = field(c_void_p)
    counts: Address = field(c_void_p)


# adapters/lora.h
@structure
class LoraPart(Structure):
    down: Address = field(c_void_p)
    up: Address = field(c_void_p)
    rank: int = field(c_int64)
    inputs: int = field(c_int64)
    outputs: int = field(c_int64)
    first_output: int = field(c_int64)
    format: int = field(c_int32)
    is_transposed: int = field(c_int32)
    scale: float = field(c_float)
    module: int = field(c_int32)
    vector: Address = field(c_void_p)


@structure
class LoraParts(Structure):
    parts: Address = field(c_void_p)
    count: int = field(c_int64)


class LoraPlace(IntEnum):
    MIXER = 0
    ROUTER = 12
    DENSE_FIRST = 13
    DENSE_SECOND = 14
    DENSE_GATE = 15
    INPUT_GATE = 16
    INNER_GATE = 19
    NGRAM_KEY = 22
    NGRAM_VALUE = 23
    HEAD = 24
    EXPERTS_INPUT = 25
    EXPERTS_OUTPUT = 26
    ROUTER_DOWN = 27
    ROUTER_FIRST = 28
    ROUTER_SECOND = 29
    COUNT = 30


@structure
class LoraLayer(Structure):
    places: Array[LoraParts] = field(LoraParts * 30)
    first: Address = field(c_void_p)
    second: Address = field(c_void_p)


@structure
class LoraStep(Structure):
    layers: Address = field(c_void_p)
    factors: Address = field(c_void_p)
    num_adapters: int = field(c_int64)
    num_layers: int = field(c_int64)
    routing: Address = field(c_void_p)


@structure
class LoraExperts(Structure):
    first: Address = field(c_void_p)
    second: Address = field(c_void_p)
    factors: Address = field(c_void_p)
    num_adapters: int = field(c_int64)
    numbers: Address = field(c_void_p)
    routing: Address = field(c_void_p)
