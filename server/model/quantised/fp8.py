"""``quant_method: fp8`` and ``mxfp8``: float8 weights with a scale per block, as in DeepSeek-V3.

``X.weight`` is float8_e4m3fn ``(out, in)``, and ``X.weight_scale_inv`` has one number per block of
``weight_block_size``, or one for the matrix; fused experts are ``X`` and ``X_scale_inv``. Weights are dequantised, and
scales of activations are ignored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache, partial

import torch

from expert_store import CheckpointError, TensorSource
from server.kernels.formats import fp8
from server.model.quantised.matrix import SlotTensor, Specs, StoredMatrix, require

SCALES = ("_scale_inv", "_scale")  # suffixes of the weight's name
MODULE_SCALES = (".scale", ".qscale_weight")  # instead of ".weight"
ACTIVATIONS = (".activation_scale", ".input_scale")
MICROSCALING = (1, 32)  # block of MXFP8
BYTES = (torch.uint8, torch.float8_e8m0fnu)

Block = tuple[int, int]


class Fp8:
    """The scheme of float8 checkpoints.

    Args:
        block: outputs and inputs that share a scale; None if the complete matrix does.
    """

    dimensions = 2

    def __init__(self, block: Block | None, scale_dtype: torch.dtype = torch.float32):
        self._block, self._scale_dtype = block, scale_dtype

    def name_of(self, codes: TensorSource) -> str | None:
        return codes.name if codes.dtype == torch.float8_e4m3fn else None

    def parts(self, codes: TensorSource, index: Mapping[str, TensorSource]) -> dict[str, TensorSource]:
        module = codes.name.removesuffix(".weight")
        names = [*(codes.name + suffix for suffix in SCALES), *(module + suffix for suffix in MODULE_SCALES)]
        others = {name: index[name] for name in (module + suffix for suffix in ACTIVATIONS) if name in index}
        return {"scale": require(index, codes, *names), **others}

    def matrix(self, codes: TensorSource, parts: Mapping[str, TensorSource]) -> StoredMatrix:
        return fp8_matrix(codes, parts["scale"], self._block)

    def specs(self, out_features: int, in_features: int) -> Specs:
        shape = (out_features, in_features)
        return fp8_specs(shape, self._block or shape, self._scale_dtype)


def fp8_specs(shape: tuple[int, int], block: Block, scale_dtype: torch.dtype) -> Specs:
    return {"": (torch.float8_e4m3fn, shape), fp8.SCALE: (scale_dtype, _slot_grid(shape, _grid(shape, block), block))}


def fp8_matrix(codes: TensorSource, scale: TensorSource, block: Block | None) -> StoredMatrix:
    """Build the matrix of codes ``(out, in)`` and scales per block, output or matrix."""
    shape = (codes.shape[0], codes.shape[1])
    choices = [shape, (1, shape[1])]  # blocks: the complete matrix, or one output
    if block is not None:
        choices.insert(0, block)
    if scale.dtype in BYTES:
        choices.append(MICROSCALING)
    grids = [_grid(shape, choice) for choice in choices]
    given = (*scale.shape, 1, 1)[: max(2, len(scale.shape))]
    if given not in grids or not (scale.dtype.is_floating_point or scale.dtype in BYTES):
        raise CheckpointError(
            f"{scale.name} has shape {list(scale.shape)} and dtype {scale.dtype}; {codes.name} of {list(codes.shape)} "
            f"needs scales of {' or '.join(str(list(grid)) for grid in dict.fromkeys(grids))}"
        )
    wanted = choices[grids.index(given)]
    grid = _slot_grid(shape, given, wanted)
    make = None if grid == given else partial(_repeat, shape=shape, block=wanted, grid=grid)
    specs = fp8_specs(shape, wanted, scale.dtype)
    tensors = SlotTensor("", *specs[""], (codes,)), SlotTensor(fp8.SCALE, *specs[fp8.SCALE], (scale,), make)
    return StoredMatrix(shape, tensors, can_transpose=True)


@cache  # a model has 100,000 matrices of a few shapes
def _grid(shape: Block, block: Block) -> tuple[int, ...]:
    return tuple(-(-size // step) for size, step in zip(shape, block, strict=True))


@cache
def _slot_grid(shape: Block, grid: tuple[int, ...], block: Block) -> tuple[int, ...]:
    """The numbers of blocks in a slot, where all blocks are equal; the last ones of a checkpoint may be smaller."""
    return tuple(
        1 if count == 1 else size // math.gcd(size, step) for size, count, step in zip(shape, grid, block, strict=True)
    )


def _repeat(read: Sequence[torch.Tensor], shape: Block, block: Block, grid: tuple[int, ...]) -> torch.Tensor:
    """Repeat scales ``(rows, columns)`` of blocks, the last of which are smaller, for smaller blocks of equal size."""
    values = read[0].view(torch.uint8) if read[0].dtype == torch.float8_e8m0fnu else read[0]
    rows, columns = (
        torch.arange(count) * (size // count) // step for count, size, step in zip(grid, shape, block, strict=True)
    )
    return values[rows][:, columns].view(read[0].dtype)
