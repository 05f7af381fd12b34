"""Index of safetensors files, from their headers; every offset is checked before data is read.

Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from expert_store.catalog import Extent, TensorSource
from expert_store.errors import CheckpointError
from expert_store.io.file_names import MISTRAL_WEIGHTS
from expert_store.io.metadata import open_regular, parse_json_object, read_json_object

MAX_HEADER_BYTES = 100_000_000
MAX_NAME_BYTES = 255
INDEX_NAME = "model.safetensors.index.json"
SUFFIX = ".safetensors"
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


def find_shards(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint folder, by its index if it has one.

    Raises:
        CheckpointError: there are none, or a shard that the index names is missing.
    """
    index = folder / INDEX_NAME
    if not os.path.lexists(index):
        found = sorted(folder.glob("*.safetensors"))
        shards = [path for path in found if not path.name.startswith(MISTRAL_WEIGHTS)] or found
        if not shards:
            raise CheckpointError(f"no .safetensors file in {folder}; pickled checkpoints (.bin, .pt) are not opened")
        return shards
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(
            f"{index} is not a safetensors index: it has no weight_map; download the checkpoint again"
        )
    names = {name if isinstance(name, str) else repr(name) for name in weight_map.values()}
    for name in sorted(names):
        if not _is_shard_name(name):
            raise CheckpointError(
                f"{index} names {name[:MAX_NAME_BYTES]!r}, which is no .safetensors file of its folder; "
                "download the checkpoint again"
            )
        if not (folder / name).exists():
            raise CheckpointError(f"shard {name} is missing from {folder}; download the checkpoint again")
    return sorted(folder / name for name in names)


def _is_shard_name(name: str) -> bool:
    is_printable = name.isprintable() and len(name.encode()) <= MAX_NAME_BYTES  # a lone surrogate is not printable
    return is_printable and name.endswith(SUFFIX) and Path(name).name == name


def read_index(paths: Iterable[Path], *, has_data: bool = True) -> dict[str, TensorSource]:
    """Return the tensors of some safetensors files by name.

    Args:
        has_data: False for files of headers alone, which give names, dtypes and shapes.

    Raises:
        CheckpointError: a header is damaged, or a tensor's offsets, shape and dtype contradict each other or the
            file; the message names file and tensor.
    """
    sources: dict[str, TensorSource] = {}
    for path in paths:
        for source in _read_header(path, has_data):
            if source.name in sources:
                raise CheckpointError(f"{source.name} is in both {sources[source.name].extent.path} and {path}")
            sources[source.name] = source
    return sources


def read_header_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file.

    Raises:
        CheckpointError: the header is damaged.
    """
    metadata = _read_json(path)[0].get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"the metadata of {path} is not an object of strings")
    return metadata


def is_header_only(path: Path) -> bool:
    """Return True if a safetensors file ends where its tensors' data should begin."""
    with closing(open_regular(path, most=None)) as file:
        return os.fstat(file.fileno()).st_size == 8 + int.from_bytes(file.read(8), "little")


def _read_header(path: Path, has_data: bool) -> list[TensorSource]:
    header, start, num_bytes = _read_json(path)
    size = num_bytes if has_data else None
    sources = [_source(path, name, entry, start, size) for name, entry in header.items() if name != "__metadata__"]
    _check_tiling(path, sources, start, size)
    return sources


def _read_json(path: Path) -> tuple[dict[str, Any], int, int]:
    """Return a file's header, the offset of its data, and the number of bytes of these."""
    with closing(open_regular(path, most=None)) as file:
        try:
            nbytes, prefix = os.fstat(file.fileno()).st_size, file.read(8)
            if len(prefix) < 8:  # noqa: PLR2004
                raise CheckpointError(f"{path} is {nbytes} bytes long, too short for a safetensors file")
            (length,) = struct.unpack("<Q", prefix)
            if length > min(MAX_HEADER_BYTES, nbytes - 8):
                raise CheckpointError(f"the header of {path} claims to be {length} bytes long, more than it can be")
            raw = file.read(length)
        except OSError as error:
            raise CheckpointError(f"cannot read the header of {path}: {error.strerror}") from error
    return parse_json_object(raw, f"the header of {path}"), 8 + length, nbytes - 8 - length


def _source(path: Path, name: str, entry: Any, start: int, size: int | None) -> TensorSource:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: {name} lacks dtype, shape or data_offsets") from error
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(f"{path}: {name} has the unknown dtype {dtype!r}")
    numbers = [begin, end, *shape] if isinstance(shape, list) else [None]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise CheckpointError(f"{path}: {name} has the shape {shape!r} and the offsets {begin!r} to {end!r}")
    if not begin <= end <= (end if size is None else size):
        raise CheckpointError(f"{path}: {name} lies at {begin} to {end} of {size} bytes; the file is cut short")
    nbytes = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != nbytes:
        raise CheckpointError(
            f"{path}: {name} of shape {shape} and dtype {dtype} takes {nbytes}, not {end - begin} bytes"
        )
    return TensorSource(name, DTYPES[dtype], tuple(shape), Extent(path, start + begin, nbytes))


def _check_tiling(path: Path, sources: list[TensorSource], start: int, size: int | None) -> None:
    """Raise CheckpointError if tensors overlap or leave gaps, which the format forbids."""
    expected = start
    for source in sorted(sources, key=lambda source: (source.extent.offset, source.extent.nbytes)):
        if source.extent.offset != expected:
            kind = "overlaps another tensor" if source.extent.offset < expected else "leaves a gap before it"
            raise CheckpointError(f"{path}: {source.name} {kind}")
        expected += source.extent.nbytes
    if size is not None and expected != start + size:
        raise CheckpointError(f"{path}: {start + size - expected} bytes after the last tensor belong to none")
