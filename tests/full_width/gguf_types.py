"""Matrices in the types of GGUF files: codes of heavy tails, and scales that differ by block and by group."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt
import torch

from tests.full_width.stored_formats import nibbles
from tests.full_width.trained_like import numbers, taken

Array = npt.NDArray[np.generic]
BLOCKS = {"Q4_K": 144, "Q5_K": 176, "Q6_K": 210, "IQ4_XS": 136, "Q8_0": 34, "Q5_0": 22, "IQ4_NL": 18, "MXFP4": 17}
INPUTS = {name: 256 if name in {"Q4_K", "Q5_K", "Q6_K", "IQ4_XS"} else 32 for name in BLOCKS}
IN_SMALL_BLOCKS = {"Q4_K": "Q5_0", "Q5_K": "Q8_0", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL"}  # where 256 divides no row
TABLE_DEVIATION = 33  # of the numbers of IQ4's table that codes around its middle stand for


def row_bytes(kind: str, inputs: int) -> int:
    """Return the bytes of a row."""
    return inputs // INPUTS[kind] * BLOCKS[kind]


def matrix_bytes(kind: str, name: str, outputs: int, inputs: int) -> npt.NDArray[np.uint8]:
    """Return a matrix whose numbers have about the standard deviation ``inputs ** -0.5``."""
    count = outputs * inputs // INPUTS[kind]
    blocks = np.empty((count, BLOCKS[kind]), np.uint8)
    MAKE[kind](blocks, inputs**-0.5, name)
    return blocks.reshape(-1)


def _half(blocks: Array, place: int, centre: float, name: str) -> Array:
    """Write float16 scales around a number, and return them."""
    found = (centre * np.exp(0.2 * _random(name).standard_normal(len(blocks), np.float32))).astype(np.float16)
    blocks[:, place : place + 2] = found.view(np.uint8).reshape(-1, 2)
    return found


def _steps(count: int, groups: int, most: int, name: str) -> npt.NDArray[np.uint8]:
    """Return the integers that multiply the scale of a block, by group: around 12, a few far larger."""
    spread = np.exp(0.4 * _random(name + " steps").standard_normal((count, groups), np.float32))
    return np.clip(np.rint(12 * spread), 1, most).astype(np.uint8)


def _codes(blocks: Array, begin: int, end: int, name: str) -> None:
    blocks[:, begin:end] = taken(nibbles(), name, len(blocks) * (end - begin)).numpy().reshape(len(blocks), -1)


def _any_bits(blocks: Array, begin: int, end: int, name: str) -> None:
    blocks[:, begin:end] = taken(_bytes(), name, len(blocks) * (end - begin)).numpy().reshape(len(blocks), -1)


def _q4_k(blocks: Array, deviation: float, name: str) -> None:
    d = _half(blocks, 0, deviation / 24, name)
    blocks[:, 2:4] = (d * np.float16(7.7)).view(np.uint8).reshape(-1, 2)
    _pack_k_scales(blocks, name)
    _codes(blocks, 16, 144, name)


def _q5_k(blocks: Array, deviation: float, name: str) -> None:
    d = _half(blocks, 0, deviation / 100, name)
    blocks[:, 2:4] = (d * np.float16(15.8)).view(np.uint8).reshape(-1, 2)
    _pack_k_scales(blocks, name)
    _any_bits(blocks, 16, 48, name)
    _codes(blocks, 48, 176, name)


def _pack_k_scales(blocks: Array, name: str) -> None:
    """Write eight scales and minima of six bits each, as ``get_scale_min_k4`` of ggml reads them."""
    scales = _steps(len(blocks), 8, 63, name)
    spread = _random(name + " minima").integers(-1, 2, scales.shape)
    minima = np.clip(scales.astype(np.int64) + spread, 0, 63).astype(np.uint8)
    blocks[:, 4:8] = scales[:, :4] | (scales[:, 4:] >> 4) << 6
    blocks[:, 8:12] = minima[:, :4] | (minima[:, 4:] >> 4) << 6
    blocks[:, 12:16] = scales[:, 4:] & 15 | (minima[:, 4:] & 15) << 4


def _q6_k(blocks: Array, deviation: float, name: str) -> None:
    _any_bits(blocks, 0, 192, name)
    blocks[:, 192:208] = _steps(len(blocks), 16, 127, name)
    blocks[:, 192:208:3] ^= 255  # some are negative
    _half(blocks, 208, deviation / (18.5 * 12), name)


def _iq4_xs(blocks: Array, deviation: float, name: str) -> None:
    _half(blocks, 0, deviation / (TABLE_DEVIATION * 12), name)
    steps = _steps(len(blocks), 8, 31, name) + 32
    high = (steps.astype(np.uint16) >> 4 << 2 * np.arange(8, dtype=np.uint16)).sum(1, dtype=np.uint16)
    blocks[:, 2:4] = high.view(np.uint8).reshape(-1, 2)
    blocks[:, 4:8] = steps[:, ::2] & 15 | (steps[:, 1::2] & 15) << 4
    _codes(blocks, 8, 136, name)


def _q8_0(blocks: Array, deviation: float, name: str) -> None:
    _half(blocks, 0, deviation / 32, name)
    codes = taken(_int8_codes(), name, len(blocks) * 32).numpy()
    blocks[:, 2:] = codes.view(np.uint8).reshape(len(blocks), -1)


def _q5_0(blocks: Array, deviation: float, name: str) -> None:
    _half(blocks, 0, deviation / 9, name)
    _any_bits(blocks, 2, 6, name)
    _codes(blocks, 6, 22, name)


def _iq4_nl(blocks: Array, deviation: float, name: str) -> None:
    _half(blocks, 0, deviation / TABLE_DEVIATION, name)
    _codes(blocks, 2, 18, name)


def _mxfp4(blocks: Array, deviation: float, name: str) -> None:
    centre = 127 + int(np.floor(np.log2(deviation / 3)))
    blocks[:, 0] = _random(name).integers(centre - 1, centre + 3, len(blocks), np.uint8)
    _any_bits(blocks, 1, 17, name)


MAKE: dict[str, Callable[[Array, float, str], None]] = {
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_XS": _iq4_xs,
    "Q8_0": _q8_0,
    "Q5_0": _q5_0,
    "IQ4_NL": _iq4_nl,
    "MXFP4": _mxfp4,
}


def _random(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


@cache
def _bytes() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (1 << 22) + 37, np.uint8))


@cache
def _int8_codes() -> torch.Tensor:
    return (numbers() * 32).round().clamp(-127, 127).to(torch.int8)
