"""Index of safetensors files, from their headers; every offset is checked before data is read.

Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch

from expert_store.catalog import Extent, TensorSource
from expert_store.errors import CheckpointError, FileNameError, SourceError
from expert_store.file_name import FileName
from expert_store.io.file_names import MISTRAL_WEIGHTS
from expert_store.io.metadata import parse_json_object, read_bytes, read_json_object
from expert_store.sources.base import Source, SourceFolder
from expert_store.sources.folder import Place, as_folder, as_source
from expert_store.sources.parallel import map_sources

LENGTH_BYTES = 8  # of the length of the header, before it
BEGIN_BYTES = 128 << 10  # of a file, read at once, as most headers are shorter and a server may be far away
MAX_HEADER_BYTES = 100_000_000
INDEX_NAME = FileName("model.safetensors.index.json")
SUFFIX = ".safetensors"
REMEDY = "download the checkpoint again"
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "U32": torch.uint32,
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


def find_shards(place: Place) -> list[Source]:
    """Return the safetensors files of a checkpoint folder, by its index if it has one.

    Raises:
        CheckpointError: there are none, or a shard that the index names is missing.
    """
    folder = as_folder(place)
    there = set(folder.names())
    if INDEX_NAME not in there:
        found = sorted(name for name in there if name.endswith(SUFFIX))
        shards = [name for name in found if not name.startswith(MISTRAL_WEIGHTS)] or found
        if not shards:
            raise CheckpointError(
                f"no .safetensors file in {folder.name}; pickled checkpoints (.bin, .pt) are not opened"
            )
        return [folder.source(name) for name in shards]
    names = shard_names(folder)
    for name in names:
        if name not in there:
            raise CheckpointError(f"shard {name} is missing from {folder.name}; {REMEDY}")
    return [folder.source(name) for name in names]


def shard_names(folder: SourceFolder) -> list[FileName]:
    """Return the names of the shards in the index of a folder, in order.

    Raises:
        CheckpointError: the index can't be read, or names something that can't be a shard.
    """
    index = folder.source(INDEX_NAME)
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{index.name} is not a safetensors index: it has no weight_map; {REMEDY}")
    try:
        texts = {name for name in weight_map.values() if isinstance(name, str)}  # each names thousands of tensors
        others = (name for name in weight_map.values() if not isinstance(name, str))
        names = {FileName(name) for name in (*texts, *others)}
    except FileNameError as error:
        raise CheckpointError(
            f"{index.name} names a shard which is no .safetensors file of its folder: {error}; {REMEDY}"
        ) from error
    for name in sorted(names):
        if name.folder or not name.endswith(SUFFIX):
            raise CheckpointError(f"{index.name} names {name!r}, which is no .safetensors file of its folder; {REMEDY}")
    return sorted(names)


def read_index(files: Iterable[Path | Source], *, has_data: bool = True) -> dict[str, TensorSource]:
    """Return the tensors of some safetensors files by name.

    Args:
        has_data: False for headers alone, which give names, dtypes and shapes.

    Raises:
        CheckpointError: a header is damaged, or a tensor's offsets, shape and dtype contradict each other or the
            source; the message names source and tensor.
    """
    tensors: dict[str, TensorSource] = {}
    sources = [as_source(file) for file in files]
    for source, found in zip(sources, map_sources(partial(_read_header, has_data=has_data), sources), strict=True):
        for tensor in found:
            if tensor.name in tensors:
                raise CheckpointError(
                    f"{tensor.name} is in both {tensors[tensor.name].extent.source.name} and {source.name}"
                )
            tensors[tensor.name] = tensor
    return tensors


def read_header_metadata(file: Path | Source) -> dict[str, str]:
    """Return the metadata of a safetensors file.

    Raises:
        CheckpointError: the header is damaged.
    """
    source = as_source(file)
    metadata = _read_json(source)[0].get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"the metadata of {source.name} is not an object of strings")
    return metadata


def is_header_only(file: Path | Source) -> bool:
    """Return True if a safetensors file ends where its tensors' data should begin."""
    with closing(as_source(file).open(is_direct=False)) as opened:
        nbytes = opened.identity.nbytes
        return nbytes >= LENGTH_BYTES and nbytes == LENGTH_BYTES + int.from_bytes(
            read_bytes(opened, 0, LENGTH_BYTES), "little"
        )


def _read_header(source: Source, has_data: bool) -> list[TensorSource]:
    header, start, num_bytes = _read_json(source)
    size = num_bytes if has_data else None
    tensors = [_tensor(source, name, entry, start, size) for name, entry in header.items() if name != "__metadata__"]
    _check_tiling(source, tensors, start, size)
    return tensors


def _read_json(source: Source) -> tuple[dict[str, Any], int, int]:
    """Return a source's header, the offset of its data, and the number of bytes of these."""
    name = f"the header of {source.name}"
    with closing(source.open(is_direct=False)) as opened:
        nbytes = opened.identity.nbytes
        if nbytes < LENGTH_BYTES:
            raise CheckpointError(f"{source.name} is {nbytes} bytes long, too short for a safetensors file")
        try:
            begin = read_bytes(opened, 0, min(nbytes, BEGIN_BYTES))
            (length,) = struct.unpack_from("<Q", begin)
            if length > min(MAX_HEADER_BYTES, nbytes - LENGTH_BYTES):
                raise CheckpointError(f"{name} claims to be {length} bytes long, more than it can be")
            raw = begin[LENGTH_BYTES : LENGTH_BYTES + length]
            raw += read_bytes(opened, LENGTH_BYTES + len(raw), length - len(raw)) if len(raw) < length else b""
        except SourceError as error:
            raise error.naming(name) from error
    return parse_json_object(raw, name), LENGTH_BYTES + length, nbytes - LENGTH_BYTES - length


def _tensor(source: Source, name: str, entry: Any, start: int, size: int | None) -> TensorSource:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{source.name}: {name} lacks dtype, shape or data_offsets") from error
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(f"{source.name}: {name} has the unknown dtype {dtype!r}")
    numbers = [begin, end, *shape] if isinstance(shape, list) else [None]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise CheckpointError(f"{source.name}: {name} has the shape {shape!r} and the offsets {begin!r} to {end!r}")
    if not begin <= end <= (end if size is None else size):
        raise CheckpointError(f"{source.name}: {name} lies at {begin} to {end} of {size} bytes; the file is cut short")
    nbytes = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != nbytes:
        raise CheckpointError(
            f"{source.name}: {name} of shape {shape} and dtype {dtype} takes {nbytes}, not {end - begin} bytes"
        )
    return TensorSource(name, DTYPES[dtype], tuple(shape), Extent(source, start + begin, nbytes))


def _check_tiling(source: Source, tensors: list[TensorSource], start: int, size: int | None) -> None:
    """Raise CheckpointError if tensors overlap or leave gaps, which the format forbids."""
    expected = start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.extent.offset, tensor.extent.nbytes)):
        if tensor.extent.offset != expected:
            kind = "overlaps another tensor" if tensor.extent.offset < expected else "leaves a gap before it"
            raise CheckpointError(f"{source.name}: {tensor.name} {kind}")
        expected += tensor.extent.nbytes
    if size is not None and expected != start + size:
        raise CheckpointError(f"{source.name}: {start + size - expected} bytes after the last tensor belong to none")
