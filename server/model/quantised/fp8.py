"""``quant_method: fp8`` and ``mxfp8``: float8 weights with scales of blocks, as DeepSeek-V3 publishes them.

``X.weight`` float8_e4m3fn ``(out, in)`` and ``X.weight_scale_inv``, one number for each block of ``weight_block_size``,
or one for the whole matrix; fused experts are ``X`` and ``X_scale_inv``. Scales of activations are not used: weights
are dequantised, and activations stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch

from expert_store import CheckpointError, TensorSource
from server.kernels import fp8

from .matrix import SlotTensor, Specs, StoredMatrix, require

SCALES = ("_scale_inv", "_scale")  # after the name of the weight
MODULE_SCALES = (".scale", ".qscale_weight")  # in the place of ".weight"
ACTIVATIONS = (".activation_scale", ".input_scale")
MICROSCALING = (1, 32)  # a block of MXFP8
BYTES = (torch.uint8, torch.float8_e8m0fnu)

Block = tuple[int, int]


class Fp8:
    """The scheme.

    Args:
        block: outputs and inputs that share a scale; None where whole matrices do.
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
    """The matrix of codes ``(out, in)`` and the scales of blocks, of outputs, or of all."""
    shape = (codes.shape[0], codes.shape[1])
    choices = [shape, (1, shape[1])]  # of a block: one for all, and one for each output
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
    return StoredMatrix(shape, tensors, can_turn=True)


def _grid(shape: Sequence[int], block: Sequence[int]) -> tuple[int, ...]:
    return tuple(-(-size // step) for size, step in zip(shape, block, strict=True))


def _slot_grid(shape: Sequence[int], grid: Sequence[int], block: Sequence[int]) -> tuple[int, ...]:
    """The number of blocks both ways, once they are made equal: the last ones of a checkpoint may be smaller."""
    return tuple(
        1 if count == 1 else size // math.gcd(size, step) for size, count, step in zip(shape, grid, block, strict=True)
    )


def _repeat(read: Sequence[torch.Tensor], shape: Block, block: Block, grid: tuple[int, ...]) -> torch.Tensor:
    """Scales ``(rows, columns)`` of blocks whose last ones are smaller, as those of smaller blocks that are equal."""
    values = read[0].view(torch.uint8) if read[0].dtype == torch.float8_e8m0fnu else read[0]
    rows, columns = (
        torch.arange(count) * (size // count) // step for count, size, step in zip(grid, shape, block, strict=True)
    )
    return values[rows][:, columns].view(read[0].dtype)
