"""Index of GGUF files, from their headers; every count, type and offset is checked before data is read.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from expert_store.catalog import Extent, TensorSource
from expert_store.errors import CheckpointError, SourceError
from expert_store.sources.base import OpenSource, Piece, Source

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT, DEFAULT_ALIGNMENT = "general.alignment", 32
MAX_ALIGNMENT = 1 << 20
MAX_HEADER_BYTES = 1 << 30
MAX_ENTRIES = 1 << 17  # of metadata, and tensors
MAX_NAME_BYTES = 255
MAX_DIMENSIONS = 4
FIRST_READ_BYTES = 1 << 20
STRING, ARRAY = 8, 9
REMEDY = "download the file again"
NUMBERS: Mapping[int, str] = {  # types of metadata, by numpy's names
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}


class BlockType(NamedTuple):
    """A type of numbers in ggml: rows consist of blocks of some inputs and some bytes."""

    name: str
    inputs: int
    nbytes: int
    dtype: torch.dtype | None = None  # of plain numbers


Types = Mapping[int, BlockType]  # by their numbers in ggml


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of a GGUF file.

    ``source`` has the numbers of a plain type. Of any other type it is uint8 ``(..., row_bytes)``: blocks, row by row.
    """

    type: BlockType
    shape: tuple[int, ...]  # the outermost dimension first, as torch has it
    source: TensorSource

    @property
    def name(self) -> str:
        """Its name in the file."""
        return self.source.name


@dataclass(frozen=True)
class GgufHeader:
    """The header of a GGUF file; a value is a number, a boolean, a string, a list of strings or an array of numbers."""

    metadata: Mapping[str, Any]
    tensors: Sequence[GgufTensor]


def read_gguf_header(source: Source, types: Types) -> GgufHeader:
    """Read the header of a GGUF file.

    Args:
        types: those that tensors may have.

    Raises:
        CheckpointError: the header is damaged, or a tensor's offset, shape and type contradict each other or the file;
            the message names the file and the tensor.
    """
    with closing(source.open(is_direct=False)) as opened:
        reader = _HeaderReader(source, opened, types)
        try:
            return _read(reader, source)
        except SourceError as error:
            raise error.naming(f"the header of {source.name}") from error


def _read(reader: _HeaderReader, source: Source) -> GgufHeader:
    if reader.nbytes < len(MAGIC) or reader.take(len(MAGIC)) != MAGIC:
        raise CheckpointError(f"{source.name} is not a GGUF file: it does not begin with GGUF; {REMEDY}")
    version = reader.number("<I")
    if version not in VERSIONS:
        is_swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
        what = "is big-endian" if is_swapped else f"has version {version} of the format"
        raise CheckpointError(f"{source.name} {what}; Greenroom reads little-endian files of versions 2 and 3")
    num_tensors, num_values = reader.count("tensors"), reader.count("values")
    metadata: dict[str, Any] = {}
    for _ in range(num_values):
        key = reader.string(MAX_NAME_BYTES)
        if key in metadata:
            raise reader.damaged(f"{key} comes twice")
        metadata[key] = reader.value(key)
    places = [_read_place(reader) for _ in range(num_tensors)]
    alignment = metadata.get(ALIGNMENT, DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise reader.damaged(f"{ALIGNMENT} is {alignment!r}, not a power of two")
    start = -(-reader.position // alignment) * alignment
    tensors = [_tensor(reader, source, place, start, alignment) for place in places]
    _check_overlaps(reader, tensors)
    return GgufHeader(metadata, tensors)


class _Place(NamedTuple):
    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


def _read_place(reader: _HeaderReader) -> _Place:
    name = reader.string(MAX_NAME_BYTES)
    num_dimensions = reader.number("<I")
    if not 1 <= num_dimensions <= MAX_DIMENSIONS:
        raise reader.damaged(f"{name} has {num_dimensions} dimensions")
    shape = tuple(reader.number("<Q") for _ in range(num_dimensions))[::-1]
    return _Place(name, shape, reader.number("<I"), reader.number("<Q"))


def _tensor(reader: _HeaderReader, source: Source, place: _Place, start: int, alignment: int) -> GgufTensor:
    name, shape = place.name, place.shape
    block = reader.types.get(place.type)
    if block is None:
        raise CheckpointError(
            f"{source.name}: {name} has the type {place.type}, which Greenroom does not know; give another file"
        )
    if min(shape) < 1 or shape[-1] % block.inputs:
        raise reader.damaged(f"{name} has the shape {list(shape)}, which is not one of {block.name}")
    row_bytes = shape[-1] // block.inputs * block.nbytes
    nbytes = math.prod(shape[:-1]) * row_bytes
    if place.offset % alignment:
        raise reader.damaged(f"{name} lies at {place.offset}, not a multiple of {alignment}")
    if start + place.offset + nbytes > reader.nbytes:
        raise CheckpointError(
            f"{source.name} is {reader.nbytes} bytes long, but {name} ends at {start + place.offset + nbytes}; the "
            f"file is cut short: {REMEDY}"
        )
    stored = (torch.uint8, (*shape[:-1], row_bytes)) if block.dtype is None else (block.dtype, shape)
    return GgufTensor(block, shape, TensorSource(name, *stored, Extent(source, start + place.offset, nbytes)))


def _check_overlaps(reader: _HeaderReader, tensors: Sequence[GgufTensor]) -> None:
    names: set[str] = set()
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.source.extent.offset):
        if tensor.name in names:
            raise reader.damaged(f"{tensor.name} comes twice")
        names.add(tensor.name)
        extent = tensor.source.extent
        if extent.offset < end:
            raise reader.damaged(f"{tensor.name} overlaps another tensor")
        end = extent.offset + extent.nbytes


class _HeaderReader:
    """Reads the values of a header one after the other; reads the file in growing parts, as they are needed."""

    def __init__(self, source: Source, opened: OpenSource, types: Types):
        self._source, self._opened, self.types = source, opened, types
        self.nbytes = opened.identity.nbytes
        self.position = 0
        self._bytes = b""

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        self._require(count)
        self.position += count
        return self._bytes[self.position - count : self.position]

    def number(self, form: str) -> Any:
        """Return the next number, in a form of the module ``struct``."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def count(self, what: str) -> int:
        """Return a number of entries."""
        count: int = self.number("<Q")
        if count > MAX_ENTRIES:
            raise self.damaged(f"it claims to hold {count} {what}")
        return count

    def string(self, most: int = MAX_HEADER_BYTES) -> str:
        """Return the next string."""
        length = self.number("<Q")
        if length > most:
            raise self.damaged(f"a text claims to be {length} bytes long")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged(f"a text at {self.position - length} is not UTF-8") from error

    def value(self, key: str) -> Any:
        """Return the next value of the metadata, after its type."""
        kind = self.number("<I")
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            return self._array(key)
        if kind not in NUMBERS:
            raise self.damaged(f"{key} has the unknown type {kind}")
        return self._numbers(kind, 1)[0].item()

    def damaged(self, reason: str) -> CheckpointError:
        """Return an error that says what is wrong."""
        return CheckpointError(f"the header of {self._source.name} is damaged: {reason}; {REMEDY}")

    def _array(self, key: str) -> Any:
        kind, count = self.number("<I"), self.number("<Q")
        if kind in NUMBERS:
            return self._numbers(kind, count)
        if kind != STRING:
            raise self.damaged(f"{key} is an array of the unknown type {kind}")
        self._require_room(count * 8)
        return self._strings(count)

    def _numbers(self, kind: int, count: int) -> np.ndarray[Any, Any]:
        dtype = np.dtype(NUMBERS[kind])
        return np.frombuffer(self.take(count * dtype.itemsize), dtype)

    def _strings(self, count: int) -> list[str]:
        """Return many strings; a vocabulary has some hundred thousand."""
        found: list[str] = []
        read_length = struct.Struct("<Q").unpack_from
        for _ in range(count):
            begin = self.position + 8
            if begin > len(self._bytes):
                self._require(8)
            end = begin + read_length(self._bytes, self.position)[0]
            if end > len(self._bytes):
                self._require(end - self.position)
            try:
                found.append(self._bytes[begin:end].decode("utf-8"))
            except UnicodeDecodeError as error:
                raise self.damaged(f"a text at {begin} is not UTF-8") from error
            self.position = end
        return found

    def _require_room(self, count: int) -> None:
        if count > min(self.nbytes, MAX_HEADER_BYTES) - self.position:
            raise CheckpointError(
                f"the header of {self._source.name} claims {count} more bytes after {self.position} of {self.nbytes}; "
                f"the file is cut short or damaged: {REMEDY}"
            )

    def _require(self, count: int) -> None:
        """Read on until the next bytes are there."""
        self._require_room(count)
        missing = self.position + count - len(self._bytes)
        if missing <= 0:
            return
        begin = len(self._bytes)
        size = min(max(missing, FIRST_READ_BYTES, begin), self.nbytes - begin)
        target = np.empty(size, dtype=np.uint8)
        self._opened.read([Piece(begin, target)])
        self._bytes += target.tobytes()
