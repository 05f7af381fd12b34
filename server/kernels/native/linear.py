"""Rows times a matrix by the native kernels."""

from __future__ import annotations

import torch

from server.kernels.native.library import Kernels
from server.kernels.native.slot_format import PLAIN
from server.kernels.native.structures.matrices import Format, LinearCall, Matrix


def plain_matrix(weight: torch.Tensor) -> Matrix | None:
    """Describe ``weight (out, in)`` to the kernels; None if they can't read it where it is."""
    if weight.dtype not in PLAIN or not weight.is_cpu or not weight.is_contiguous():
        return None
    outputs, inputs = weight.shape
    return Matrix(format=PLAIN[weight.dtype], outputs=outputs, inputs=inputs, data=weight.data_ptr())


def is_exact_for(kernels: Kernels, rows: torch.Tensor) -> bool:
    """Return True if rows must not be rounded before a product."""
    return rows.dtype == torch.float32 and not kernels.rounds_float32


def native_linear(
    kernels: Kernels, rows: torch.Tensor, matrix: Matrix, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """``rows (..., in)`` times a matrix: ``(..., out)`` in the dtype of the rows.

    The product is batch-invariant.
    """
    flat = rows.reshape(-1, rows.shape[-1])
    if flat.stride(-1) != 1:
        flat = flat.contiguous()
    output = rows.new_empty((flat.shape[0], matrix.outputs))
    kernels.linear(
        LinearCall(
            matrix=matrix,
            bias=None if bias is None else bias.data_ptr(),
            x=flat.data_ptr(),
            y=output.data_ptr(),
            rows=flat.shape[0],
            x_stride=flat.stride(0),
            y_stride=matrix.outputs,
            bias_format=Format.FLOAT32 if bias is None else PLAIN[bias.dtype],
            x_format=PLAIN[rows.dtype],
            y_format=PLAIN[rows.dtype],
            is_exact=int(is_exact_for(kernels, rows)),
        )
    )
    return output.view(*rows.shape[:-1], matrix.outputs)
