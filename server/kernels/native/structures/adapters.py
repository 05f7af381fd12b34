"""Mirrors of ``src/adapters/lora.h`` and ``lora_router.h``: low-rank additions."""

from __future__ import annotations

from ctypes import Structure, c_float, c_int32, c_int64, c_void_p
from enum import IntEnum


class LoraPlace(IntEnum):
    """The matrices of a layer that adapters may add to: those of its mixer, in an order of its kind, and others.

    ``INPUT_GATE`` and ``INNER_GATE`` are each the first of three: gates, down and up, and weights of results.
    """

    MIXER = 0
    ROUTER = 10
    DENSE_FIRST = 11
    DENSE_SECOND = 12
    DENSE_GATE = 13
    INPUT_GATE = 14
    INNER_GATE = 17
    NGRAM_KEY = 20
    NGRAM_VALUE = 21
    HEAD = 22
    COUNT = 23


class LoraPart(Structure):
    _fields_ = [
        ("down", c_void_p),
        ("up", c_void_p),
        ("rank", c_int64),
        ("inputs", c_int64),
        ("outputs", c_int64),
        ("first_output", c_int64),
        ("format", c_int32),
        ("is_transposed", c_int32),
        ("scale", c_float),
        ("module", c_int32),
        ("vector", c_void_p),
    ]


class LoraParts(Structure):
    _fields_ = [("parts", c_void_p), ("count", c_int64)]


class LoraLayer(Structure):
    _fields_ = [("places", LoraParts * LoraPlace.COUNT), ("first", c_void_p), ("second", c_void_p)]


class LoraRouter(Structure):
    _fields_ = [
        ("candidates", c_void_p),
        ("top_k", c_int32),
        ("is_signed", c_int32),
        ("temperature", c_float),
        ("unused", c_int32),
    ]


class LoraRouting(Structure):
    _fields_ = [("routers", c_void_p), ("router_of_token", c_void_p), ("totals", c_void_p), ("counts", c_void_p)]


class LoraStep(Structure):
    _fields_ = [
        ("layers", c_void_p),
        ("factors", c_void_p),
        ("num_adapters", c_int64),
        ("num_layers", c_int64),
        ("routing", c_void_p),
    ]


class LoraExperts(Structure):
    _fields_ = [
        ("first", c_void_p),
        ("second", c_void_p),
        ("factors", c_void_p),
        ("num_adapters", c_int64),
        ("numbers", c_void_p),
        ("routing", c_void_p),
    ]
