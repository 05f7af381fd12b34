"""Quantises matrices to the formats of packs in the native kernels (``src/formats/quantise.inc``)."""

from __future__ import annotations

import torch

from server.kernels.native.library import load
from server.kernels.native.structures.matrices import Format

FORMATS = {torch.float32: Format.FLOAT32, torch.bfloat16: Format.BFLOAT16, torch.float16: Format.FLOAT16}


def quantise(kind: Format, matrix: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> None:
    """Quantise a matrix, whose numbers the format can represent; the interpreter's lock is released.

    Args:
        kind: ``Q8`` or ``Q4``.
        matrix: ``(out, in)`` on the CPU, of any plain dtype.
        codes, scales: the tensors of the format's ``specs``, which are written.

    Raises:
        ValueError: the kernels can't quantise to this format.
    """
    matrix = (matrix if matrix.dtype in FORMATS else matrix.float()).contiguous()
    source = matrix.data_ptr(), FORMATS[matrix.dtype], *matrix.shape
    if load().greenroom_quantise(kind, *source, codes.data_ptr(), scales.data_ptr()):
        raise ValueError(f"the native kernels can't quantise to {kind.name}")
