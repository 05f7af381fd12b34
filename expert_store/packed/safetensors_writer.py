"""Tensors of a checkpoint into a safetensors file, copied by pieces.

Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from expert_store.catalog import TensorSource
from expert_store.errors import ShortReadError
from expert_store.safetensors_index import DTYPES

CHUNK_BYTES = 8 << 20
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_safetensors(path: Path, tensors: Sequence[TensorSource]) -> None:
    """Copy tensors as they are; what was in the file is lost.

    Raises:
        OSError: a file can't be read or written.
        ShortReadError: a source ends too early.
    """
    tensors = sorted(tensors, key=lambda source: (-source.dtype.itemsize, source.name))  # so that all lie aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for source in tensors:
        header[source.name] = {
            "dtype": DTYPE_NAMES[source.dtype],
            "shape": list(source.shape),
            "data_offsets": [end, end + source.extent.nbytes],
        }
        end += source.extent.nbytes
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        position = write_at(target, np.frombuffer(struct.pack("<Q", len(raw)) + raw, dtype=np.uint8), 0)
        for source in tensors:
            position = _copy(source, target, position)
    finally:
        os.close(target)


def write_at(file: int, data: npt.NDArray[np.uint8], offset: int) -> int:
    """Write all of some bytes; the offset behind them."""
    done = 0
    while done < len(data):
        done += os.pwrite(file, data[done : done + CHUNK_BYTES].data, offset + done)
    return offset + done


def _copy(source: TensorSource, target: int, position: int) -> int:
    with source.extent.path.open("rb", buffering=0) as file:
        file.seek(source.extent.offset)
        left = source.extent.nbytes
        while left:
            chunk = file.read(min(left, CHUNK_BYTES))
            if not chunk:
                raise ShortReadError(f"{source.extent.path} ends inside {source.name}; it was cut short or replaced")
            position = write_at(target, np.frombuffer(chunk, dtype=np.uint8), position)
            left -= len(chunk)
    return position
