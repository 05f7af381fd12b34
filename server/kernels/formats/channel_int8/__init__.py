"""Matrices of int8, symmetric, with one scale per output channel: published 8-bit checkpoints and older packs.

``NAME`` is int8 ``(out, in)`` whatever the module's orientation, ``NAME_scale`` is float32 ``(out,)``; the weight is
``NAME * NAME_scale``. Scales are representable in bfloat16, so the fused product loses nothing on them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional as F

from server.kernels.batch_invariant import is_batch_invariant
from server.kernels.linear import linear
from server.kernels.native import slot_format
from server.kernels.native.slot_format import Places, Shape, Tag
from server.kernels.native.structures.matrices import Format, Matrix

SCALE = "_scale"
FUSED_INPUTS = 32  # the fused product reads past the end of a row if the width is not a multiple of its vectors
# With more rows, converting the matrix once costs less than the slower fused product; measured in
# benchmarks/results/2026-11-24-unnamed/formats-of-packed-experts.json.
MOST_FUSED_ROWS = 8
KINDS = (Format.INT8,)  # in the native kernels
TAG = Tag("", torch.int8)


def specs(name: str, out_features: int, in_features: int) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
    """Name, dtype and shape of each tensor of a matrix."""
    return [(name, torch.int8, (out_features, in_features)), (name + SCALE, torch.float32, (out_features,))]


def dequantise(weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    """The float32 matrix ``(out, in)``."""
    return weights[name].float() * weights[name + SCALE].unsqueeze(1)


def project(
    weights: Mapping[str, torch.Tensor], name: str, rows: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """``(rows, in)`` to ``(rows, out)`` in the dtype of the rows.

    The fused product is batch-invariant, so in batch-invariant mode it is used for any number of rows.
    """
    codes, scale = weights[name], weights[name + SCALE]
    can_be_fused = rows.dtype == torch.bfloat16 and rows.device.type == "cpu" and codes.shape[1] % FUSED_INPUTS == 0
    if can_be_fused and (len(rows) <= MOST_FUSED_ROWS or is_batch_invariant()):
        output = torch._weight_int8pack_mm(rows, codes, scale.bfloat16())  # noqa: SLF001
    elif rows.dtype == torch.float16:  # a sum over unscaled codes may exceed float16
        output = F.linear(rows, dequantise(weights, name).half())
    else:
        output = (linear(rows, codes.to(rows.dtype)) * scale).to(rows.dtype)  # these dtypes hold a code exactly
    return output if bias is None else output + bias


def describe(places: Places, name: str, shape: Shape) -> Matrix | None:
    """Describe a matrix to the native kernels; None if they do not support it."""
    codes, scales = places.get(name), places.get(name + SCALE)
    if codes is None or scales is None or codes.dtype != torch.int8 or codes.shape != shape:
        return None
    return slot_format.in_blocks(Format.INT8, shape, codes, scales)
