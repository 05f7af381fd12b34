"""Matrices of int8 with a scale, and optionally a zero, per output channel and group of inputs: published checkpoints.

A weight is ``(code - zero) * scale``. ``NAME_codes`` is int8 ``(out, in)``, and ``NAME_steps`` ``(out, groups)`` in any
floating-point dtype. ``NAME_zero``, optional, is int16 of the same shape, or float32, which the native kernels do not
take. ``NAME_order``, optional, is int32 ``(in,)``: the input that each column belongs to. All groups have one size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from server.kernels.formats.chunked import in_order, num_rows, project_chunks
from server.kernels.native import slot_format
from server.kernels.native.slot_format import Places, Shape, Tag
from server.kernels.native.structures.matrices import Format, Matrix

CODES = "_codes"
STEPS = "_steps"
ZERO = "_zero"
ORDER = "_order"
KINDS = (Format.INT8,)  # in the native kernels
TAG = Tag(CODES, torch.int8)


def dequantise(weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    """The float32 matrix ``(out, in)``."""
    return in_order(torch.cat(list(_chunks(weights, name, torch.float32))), weights.get(name + ORDER))


def project(
    weights: Mapping[str, torch.Tensor], name: str, rows: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """``(rows, in)`` to ``(rows, out)`` in the dtype of the rows."""
    if name + ORDER in weights:
        rows = rows.index_select(1, weights[name + ORDER])
    return project_chunks(rows, _chunks(weights, name, rows.dtype), bias)


def describe(places: Places, name: str, shape: Shape) -> Matrix | None:
    """Describe a matrix to the native kernels; None if they do not support it."""
    codes, steps, zeros, order = (places.get(name + suffix) for suffix in (CODES, STEPS, ZERO, ORDER))
    if codes is None or steps is None or codes.dtype != torch.int8 or codes.shape != shape:
        return None
    if zeros is not None and zeros.dtype != torch.int16:
        return None
    matrix = slot_format.in_blocks(Format.INT8, shape, codes, steps)
    if matrix is not None:
        matrix.zeros = None if zeros is None else zeros.offset
        matrix.order = None if order is None else order.offset
    return matrix


def _chunks(weights: Mapping[str, torch.Tensor], name: str, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """Yield the dequantised matrix, some rows at a time."""
    codes, steps, zero = weights[name + CODES], weights[name + STEPS].float(), weights.get(name + ZERO)
    count = num_rows(codes.shape[1])
    for start in range(0, len(codes), count):
        values = codes[start : start + count].float().unflatten(1, (steps.shape[1], -1))  # type: ignore[no-untyped-call]
        if zero is not None:
            values.sub_(zero[start : start + count].unsqueeze(-1))
        values.mul_(steps[start : start + count].unsqueeze(-1))
        yield values.flatten(1).to(dtype)
