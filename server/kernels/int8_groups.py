"""Matrices of int8 with a scale, and perhaps a zero, of each output channel and group of inputs.

A weight is ``(code - zero) * scale``. ``NAME_codes`` is int8 ``(out, in)``, ``NAME_steps`` ``(out, groups)`` in any
floating-point dtype, and ``NAME_zero``, where there is one, int16 of the same shape. ``NAME_order``, where there is
one, is int32 ``(in,)``: which input each column belongs to. Groups are equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from .pieces import in_order, num_rows, project_pieces

CODES = "_codes"
STEPS = "_steps"
ZERO = "_zero"
ORDER = "_order"


def is_quantised(weights: Mapping[str, torch.Tensor], name: str) -> bool:
    return name + CODES in weights


def dequantise(weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    """The float32 matrix ``(out, in)``."""
    return in_order(torch.cat(list(_pieces(weights, name, torch.float32))), weights.get(name + ORDER))


def project(
    weights: Mapping[str, torch.Tensor], name: str, rows: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """``(rows, in)`` to ``(rows, out)`` in the dtype of the rows."""
    if name + ORDER in weights:
        rows = rows.index_select(1, weights[name + ORDER])
    output = project_pieces(rows, _pieces(weights, name, rows.dtype))
    return output if bias is None else output + bias


def _pieces(weights: Mapping[str, torch.Tensor], name: str, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """Some rows of the matrix after the other."""
    codes, steps, zero = weights[name + CODES], weights[name + STEPS].float(), weights.get(name + ZERO)
    count = num_rows(codes.shape[1])
    for start in range(0, len(codes), count):
        values = codes[start : start + count].float().unflatten(1, (steps.shape[1], -1))  # type: ignore[no-untyped-call]
        if zero is not None:
            values.sub_(zero[start : start + count].unsqueeze(-1))
        values.mul_(steps[start : start + count].unsqueeze(-1))
        yield values.flatten(1).to(dtype)
