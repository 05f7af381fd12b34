"""Writer of safetensors files.

Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from expert_store.catalog import ParameterSpec, TensorSource
from expert_store.errors import SourceError
from expert_store.io.safetensors_index import DTYPES
from expert_store.sources.base import Bytes, Piece

CHUNK_BYTES = 8 << 20
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class MadeTensors:
    """Tensors that are computed together, when they are written.

    Args:
        specs: their names, dtypes and shapes.
        make: computes them; returns them by name.
    """

    specs: tuple[ParameterSpec, ...]
    make: Callable[[], Mapping[str, torch.Tensor]]


def write_safetensors(path: Path, tensors: Sequence[TensorSource], made: Sequence[MadeTensors] = ()) -> None:
    """Write a file of tensors copied from a checkpoint and of tensors computed now, replacing its content.

    Raises:
        OSError: the file can't be written.
        SourceError: a source can't be read, or ends too early.
    """
    specs = [ParameterSpec(source.name, source.dtype, source.shape) for source in tensors]
    specs += [spec for each in made for spec in each.specs]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offsets, end = {}, 0
    for spec in sorted(specs, key=lambda spec: (-spec.dtype.itemsize, spec.name)):  # so that all are aligned
        header[spec.name] = {
            "dtype": DTYPE_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [end, end + spec.nbytes],
        }
        offsets[spec.name] = end
        end += spec.nbytes
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        start = write_at(target, np.frombuffer(struct.pack("<Q", len(raw)) + raw, dtype=np.uint8), 0)
        for source in sorted(tensors, key=lambda source: offsets[source.name]):
            _copy(source, target, start + offsets[source.name])
        for each in made:
            values = each.make()
            for spec in each.specs:
                data = values[spec.name].contiguous().flatten().view(torch.uint8).numpy()
                write_at(target, data, start + offsets[spec.name])
    finally:
        os.close(target)


def write_at(file: int, data: Bytes, offset: int) -> int:
    """Write all of some bytes, and return the offset after them."""
    done = 0
    while done < len(data):
        done += os.pwrite(file, data[done : done + CHUNK_BYTES].data, offset + done)
    return offset + done


def _copy(source: TensorSource, target: int, position: int) -> None:
    for chunk in _chunks(source):
        position = write_at(target, chunk, position)


def _chunks(source: TensorSource) -> Iterator[Bytes]:
    extent = source.extent
    try:
        with closing(extent.source.open(is_direct=False)) as opened:
            for start in range(0, extent.nbytes, CHUNK_BYTES):
                chunk = np.empty(min(CHUNK_BYTES, extent.nbytes - start), dtype=np.uint8)
                opened.read([Piece(extent.offset + start, chunk)])
                yield chunk
    except SourceError as error:
        raise error.naming(extent.source.name, source.name) from error
