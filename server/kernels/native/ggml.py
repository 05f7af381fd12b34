"""Passes GGUF files' rows of blocks and tables of numbers to the native kernels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from server.kernels.native.library import load
from server.kernels.native.structures.matrices import Format


def repack(kind: Format, raw: torch.Tensor, in_features: int, into: Sequence[torch.Tensor | None]) -> None:
    """Write the tensors of a matrix; the interpreter's lock is released.

    Args:
        kind: the format that a type of the file is stored in.
        raw: uint8 ``(out, row bytes)``.
        into: codes and scales, or codes alone; None for what is not wanted. The caller knows that sizes are right.
    """
    raw = raw.contiguous()
    assert all(each is None or each.is_contiguous() for each in into)
    places = [None if each is None else each.data_ptr() for each in (*into, None)[:2]]
    if load().greenroom_repack(kind, raw.data_ptr(), len(raw), in_features, *places):
        raise ValueError(f"no type of a file is stored as {kind.name}")


def set_grid(kind: Format, numbers: np.ndarray) -> None:
    """Set the numbers that the codes of a format mean: bytes ``(codes, inputs)`` (``formats/file_blocks/grids.h``)."""
    if load().greenroom_set_grid(kind, numbers.ctypes.data, numbers.nbytes):
        raise ValueError(f"{kind.name} has no table of {numbers.nbytes} bytes")
