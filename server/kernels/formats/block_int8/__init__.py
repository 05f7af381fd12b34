"""The int8 format of packs: symmetric, with a scale per output and group of 32 inputs, 8.5 bits a weight.

The weight is ``code * scale``. ``blocks`` defines the blocks:

- ``NAME_q8`` is int8 ``(blocks, quads, 16, 4)``: for each four inputs of a block, its 16 outputs with four codes each,
  from -127 to 127.
- ``NAME_q8_scale`` is float16 ``(blocks, groups, 16)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from server.kernels.formats import blocks
from server.kernels.formats.blocks import GROUP, Spec
from server.kernels.native.slot_format import Places, Shape, Tag
from server.kernels.native.structures.matrices import Format, Matrix

LARGEST = 127
LARGEST_WEIGHT = 65504.0 * LARGEST
QUAD = 4  # inputs
OUTPUTS = blocks.OUTPUTS
CODES = "_q8"
SCALE = "_q8_scale"
DIVISORS = (127.5, 126.0, 124.5, 123.0, 121.5, 120.0, 118.5, 117.0)  # scales to try: the largest weight by each
KINDS = (Format.Q8,)  # in the native kernels
TAG = Tag(CODES, torch.int8)


def specs(name: str, out_features: int, in_features: int) -> list[Spec]:
    """Name, dtype and shape of each tensor of a matrix."""
    num_blocks, num_groups = blocks.num_blocks(out_features), blocks.num_groups(in_features)
    return [
        (name + CODES, torch.int8, (num_blocks, num_groups * GROUP // QUAD, OUTPUTS, QUAD)),
        (name + SCALE, torch.float16, (num_blocks, num_groups, OUTPUTS)),
        *blocks.shape_specs(name + CODES, out_features, in_features),
    ]


def quantise(name: str, matrix: torch.Tensor) -> dict[str, torch.Tensor]:
    """Quantise a matrix ``(out, in)``, whose largest magnitude is at most ``LARGEST_WEIGHT``, to its tensors.

    The native kernels do so if there are any, with errors as small.
    """
    native = blocks.quantise(Format.Q8, specs(name, *matrix.shape), matrix)
    return _quantise(name, matrix) if native is None else native | blocks.shape_tensors(name + CODES, matrix)


def _quantise(name: str, matrix: torch.Tensor) -> dict[str, torch.Tensor]:
    """``quantise`` without native kernels."""
    codes, scales = [], []
    for groups in blocks.groups_of(matrix):
        found, scale = _quantise_groups(groups)
        codes.append(found.flatten(2).unflatten(2, (-1, QUAD)).transpose(1, 2))  # type: ignore[no-untyped-call]
        scales.append(scale.squeeze(-1).transpose(1, 2))
    tensors = {name + CODES: torch.cat(codes), name + SCALE: torch.cat(scales)}
    return tensors | blocks.shape_tensors(name + CODES, matrix)


def dequantise(weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    """The float32 matrix ``(out, in)``."""
    shape = blocks.shape_of(weights, name + CODES, weights[name + SCALE])
    return blocks.join(_chunks(weights, name, shape[1], torch.float32), shape)


def project(
    weights: Mapping[str, torch.Tensor], name: str, rows: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """``(rows, in)`` to ``(rows, out)`` in the dtype of the rows."""
    out_features, in_features = blocks.shape_of(weights, name + CODES, weights[name + SCALE])
    return blocks.project(rows, _chunks(weights, name, in_features, rows.dtype), out_features, bias)


def describe(places: Places, name: str, shape: Shape) -> Matrix | None:
    """Describe a matrix to the native kernels; None if they do not support it."""
    return blocks.describe(Format.Q8, places, name + CODES, shape, QUAD)


def _chunks(
    weights: Mapping[str, torch.Tensor], name: str, in_features: int, dtype: torch.dtype
) -> Iterator[torch.Tensor]:
    """Yield the dequantised matrix, some rows at a time, ``(rows, in)``."""
    codes, scale = weights[name + CODES], weights[name + SCALE]
    count = blocks.blocks_per_chunk(scale)
    for start in range(0, len(codes), count):
        steps = scale[start : start + count].float().transpose(1, 2).unsqueeze(-1)  # (blocks, 16, groups, 1)
        values = codes[start : start + count].transpose(1, 2).float()  # (blocks, 16, quads, 4)
        values = values.reshape(*steps.shape[:3], GROUP).mul_(steps)
        yield values.flatten(2).flatten(0, 1)[:, :in_features].to(dtype)


def _quantise_groups(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise groups ``(..., 32)`` to codes int8 and float16 scales ``(..., 1)``, the best of several scales.

    The first scale is the smallest with no weight off by more than half a step. The others have larger steps, but may
    still have the least squared error, which varies by a sixth for 32 weights.
    """
    largest = values.abs().amax(-1, keepdim=True)
    best = torch.zeros_like(largest)
    least = torch.full_like(largest, torch.inf)
    for divisor in DIVISORS:
        scale = (largest / divisor).half().float()
        steps = torch.where(scale > 0, scale, 1.0)
        off = (values / steps).round_().clamp_(-LARGEST, LARGEST).mul_(scale).sub_(values)
        error = torch.linalg.vecdot(off, off).unsqueeze(-1)
        is_better = error < least
        best, least = torch.where(is_better, scale, best), torch.where(is_better, error, least)
    steps = torch.where(best > 0, best, 1.0)
    return (values / steps).round_().clamp_(-LARGEST, LARGEST).to(torch.int8), best.half()
