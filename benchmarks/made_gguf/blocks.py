"""Random matrices in the block formats of ggml, made as blocks without quantising anything.

Codes are uniform random bytes; scales are constant, so that numbers have the wanted standard deviation. Layouts:
https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-common.h
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Q4_K_SCALE, Q6_K_SCALE = 8, 16  # of all groups of a block
MXFP4_BIAS = 127


@dataclass(frozen=True)
class BlockFormat:
    """A format: numbers and layout of a block, and what sets the scales of blocks."""

    num_values: int
    layout: np.dtype
    codes: tuple[str, ...]  # fields of random bytes
    set_scales: Callable[[npt.NDArray[np.void], float], None]  # from the standard deviation

    def nbytes(self, num_values: int) -> int:
        """Return the bytes of so many numbers."""
        return num_values // self.num_values * self.layout.itemsize

    def random(self, shape: tuple[int, ...], deviation: float, rng: np.random.Generator) -> Bytes:
        """Return a matrix, or several: the bytes of rows, ``(..., bytes of a row)``."""
        blocks = np.empty(math.prod(shape) // self.num_values, self.layout)
        for name in self.codes:
            field = blocks[name]
            field[...] = np.frombuffer(rng.bytes(field.nbytes), field.dtype).reshape(field.shape)
        self.set_scales(blocks, deviation)
        return blocks.view(np.uint8).reshape(*shape[:-1], self.nbytes(shape[-1]))


def _q4_k(blocks: npt.NDArray[np.void], deviation: float) -> None:
    """Number: ``d * scale * code - dmin * minimum``, with codes of 0 to 15."""
    blocks["d"] = deviation / (Q4_K_SCALE * np.arange(16).std())
    blocks["dmin"] = np.arange(16).mean() * blocks["d"]
    blocks["scales"][:, :8] = Q4_K_SCALE  # the low bits of scales and minima of the first four groups
    blocks["scales"][:, 8:] = Q4_K_SCALE | Q4_K_SCALE << 4  # both, of the other four


def _q6_k(blocks: npt.NDArray[np.void], deviation: float) -> None:
    """Number: ``d * scale * code``, with codes of -32 to 31."""
    blocks["d"] = deviation / (Q6_K_SCALE * np.arange(64).std())
    blocks["scales"] = Q6_K_SCALE


def _q8_0(blocks: npt.NDArray[np.void], deviation: float) -> None:
    """Number: ``d * code``, with codes of -128 to 127."""
    blocks["d"] = deviation / np.arange(256).std()


def _mxfp4(blocks: npt.NDArray[np.void], deviation: float) -> None:
    """Number: ``2 ** (e - 127)`` times one of 0, 0.5, 1, 1.5, 2, 3, 4, 6 or its negative."""
    magnitudes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    blocks["e"] = MXFP4_BIAS + round(math.log2(deviation / np.sqrt((magnitudes**2).mean())))


def _layout(*fields: tuple[str, str] | tuple[str, str, int]) -> np.dtype:
    return np.dtype(list(fields))


FORMATS: Mapping[str, BlockFormat] = {
    "Q4_K": BlockFormat(
        256, _layout(("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("codes", "u1", 128)), ("codes",), _q4_k
    ),
    "Q6_K": BlockFormat(
        256,
        _layout(("low", "u1", 128), ("high", "u1", 64), ("scales", "i1", 16), ("d", "<f2")),
        ("low", "high"),
        _q6_k,
    ),
    "Q8_0": BlockFormat(32, _layout(("d", "<f2"), ("codes", "u1", 32)), ("codes",), _q8_0),
    "MXFP4": BlockFormat(32, _layout(("e", "u1"), ("codes", "u1", 16)), ("codes",), _mxfp4),
}
