"""Matrices of GGUF files' types: random blocks of finite numbers, as bytes."""

from __future__ import annotations

import numpy as np
import torch

from server.kernels.formats.ggml_types import GGML_TYPES

NUMBERS = {kind.name: number for number, kind in GGML_TYPES.items()}
QUANTISED = [kind.name for kind in GGML_TYPES.values() if kind.format is not None]
HALVES = {  # where a block has float16 numbers, in bytes
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ2_XXS": (0,),
    "IQ2_XS": (0,),
    "IQ3_XXS": (0,),
    "IQ1_S": (0,),
    "IQ4_NL": (0,),
    "IQ3_S": (0,),
    "IQ2_S": (0,),
    "IQ4_XS": (0,),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
}


def random_rows(name: str, out_features: int, in_features: int, seed: int = 0) -> torch.Tensor:
    """The bytes of a matrix ``(out, row bytes)`` of a type, with any codes and small scales."""
    kind, random = GGML_TYPES[NUMBERS[name]], np.random.default_rng(seed)
    blocks = random.integers(0, 256, (out_features, in_features // kind.inputs, kind.block_bytes), dtype=np.uint8)
    shape = blocks.shape[:2]
    for place in HALVES.get(name, ()):
        numbers = random.uniform(-0.02, 0.02, (*shape, 1)).astype(np.float16)
        blocks[..., place : place + 2] = numbers.view(np.uint8)
    if name == "IQ1_M":  # the highest bits of four words of the scales
        blocks[..., 49::2] = blocks[..., 49::2] & 15 | np.array([0, 0, 2, 2], dtype=np.uint8) << 4
    if name == "MXFP4":
        blocks[..., 0] = random.integers(118, 125, shape)
    if name == "NVFP4":
        blocks[..., :4] = random.integers(0, 48, (*shape, 4))
    return torch.from_numpy(blocks.reshape(out_features, -1))
