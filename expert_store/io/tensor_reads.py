"""Reads of tensors into memory of their own."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import torch

from expert_store.catalog import TensorSource
from expert_store.errors import SourceError
from expert_store.sources.base import Bytes, Piece


def read_tensor(source: TensorSource) -> torch.Tensor:
    """Read one tensor of a checkpoint into memory of its own, and drop its bytes from the page cache.

    Raises:
        SourceError: its source can't be read, or ends too early.
    """
    target = np.empty(source.extent.nbytes, dtype=np.uint8)
    try:
        with closing(source.extent.source.open(is_direct=False)) as opened:
            opened.read([Piece(source.extent.offset, target)])
    except SourceError as error:
        raise error.naming(source.extent.source.name, source.name) from error
    return as_tensor(target, source)


def as_tensor(raw: Bytes, source: TensorSource) -> torch.Tensor:
    """Return the tensor that some bytes are."""
    return torch.from_numpy(raw).view(source.dtype).view(source.shape)  # type: ignore[no-untyped-call,unused-ignore]
