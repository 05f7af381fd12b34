"""A model's GGUF file, or the files that it is split into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy as np
import torch

from expert_store import (
    BlockType,
    CheckpointError,
    FileName,
    GgufTensor,
    Place,
    Source,
    SourceFolder,
    as_folder,
    read_gguf_header,
)
from server.kernels.formats.ggml_types import GGML_TYPES
from server.model.checkpoint.local_files import names_of_splits
from server.model.errors import ModelError

NUM_SPLITS, SPLIT_NUMBER, NUM_TENSORS = "split.count", "split.no", "split.tensors.count"
ARCHITECTURE = "general.architecture"
PROJECTORS = ("clip", "mmproj")  # architectures of files with the image part of a model
IMAGE_PARTS = ("v.", "mm.")  # begin the names of tensors
TYPES: Mapping[int, BlockType] = {  # those of weights, and plain numbers that are none
    **{number: BlockType(kind.name, kind.inputs, kind.block_bytes, kind.dtype) for number, kind in GGML_TYPES.items()},
    24: BlockType("I8", 1, 1, torch.int8),
    25: BlockType("I16", 1, 2, torch.int16),
    26: BlockType("I32", 1, 4, torch.int32),
    27: BlockType("I64", 1, 8, torch.int64),
    28: BlockType("F64", 1, 8, torch.float64),
}
REMEDY = "download all files of the model again"
Plain = TypeVar("Plain", int, bool, str, list[str])
KINDS: Mapping[type, str] = {int: "a whole number", bool: "true or false", str: "a text", list: "a list of texts"}


@dataclass(frozen=True)
class GgufFile:
    """The metadata and the tensors of a model in the GGUF format."""

    name: FileName  # of the first file
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    @classmethod
    def open(cls, place: Place, name: FileName) -> Self:
        """Read the header of a file, and of the others that it is split into.

        Args:
            place: the folder of the files.
            name: of any file of a model.

        Raises:
            CheckpointError: a header is damaged, a file is missing, or files do not belong to each other.
            ModelError: the file has no architecture of a language model.
        """
        sources = split_files(as_folder(place), name)
        headers = [read_gguf_header(source, TYPES) for source in sources]
        metadata = headers[0].metadata
        tensors: dict[str, GgufTensor] = {}
        for number, (each, header) in enumerate(zip(names_of_splits(name), headers, strict=True)):
            _check_split(cls(each, header.metadata, {}), number, len(headers))
            for tensor in header.tensors:
                if tensor.name in tensors:
                    first, second = (each.source.extent.source.name for each in (tensors[tensor.name], tensor))
                    raise CheckpointError(f"{tensor.name} is in both {first} and {second}; {REMEDY}")
                tensors[tensor.name] = tensor
        found = cls(name, metadata, tensors)
        count = found.plain(NUM_TENSORS, int)
        if count is not None and count != len(tensors):
            raise CheckpointError(f"the files of {name} hold {len(tensors)} tensors, not {count}; {REMEDY}")
        if found.architecture in PROJECTORS:
            raise ModelError(f"{name} is the image part of a model; give the file of its language model")
        return found

    @property
    def architecture(self) -> str:
        """The name that llama.cpp gives the architecture."""
        name = self.plain(ARCHITECTURE, str)
        if name is None:
            raise ModelError(f"{self.name} does not say which architecture it is ({ARCHITECTURE}); {REMEDY}")
        return name

    @property
    def image_tensors(self) -> list[str]:
        """Names of the tensors of an image part, which Ollama's files may have beside the language model's."""
        return [name for name in self.tensors if name.startswith(IMAGE_PARTS)]

    def plain(self, key: str, kind: type[Plain]) -> Plain | None:
        """Return a value of the metadata, by its complete key; None if there is none.

        Args:
            kind: of the value; a list has texts.

        Raises:
            ModelError: the value is of another kind.
        """
        found = self.metadata.get(key)
        if found is None or type(found) is kind:
            return found
        raise ModelError(f"{key} of {self.name} is not {KINDS[kind]}; {REMEDY}")

    def numbers(self, key: str) -> list[int]:
        """Return an array of whole numbers of the metadata, by its complete key; empty if there is none.

        Raises:
            ModelError: the value is another one.
        """
        found = self.metadata.get(key)
        if found is None:
            return []
        if not isinstance(found, np.ndarray) or found.dtype.kind not in "iu":
            raise ModelError(f"{key} of {self.name} is not an array of whole numbers; {REMEDY}")
        numbers: list[int] = found.tolist()
        return numbers

    def own_metadata(self) -> dict[str, Any]:
        """Return the architecture's metadata, by keys without the architecture."""
        prefix = f"{self.architecture}."
        return {key.removeprefix(prefix): value for key, value in self.metadata.items() if key.startswith(prefix)}

    def has(self, key: str) -> bool:
        """Return True if the architecture's metadata has a key."""
        return f"{self.architecture}.{key}" in self.metadata

    def value(self, key: str, default: Any = None) -> Any:
        """Return a value of the architecture's metadata; numbers of an array as a list.

        Args:
            key: without the architecture.
            default: if there is no such key; None if it must be there.

        Raises:
            ModelError: there is no such key.
        """
        found = self.metadata.get(f"{self.architecture}.{key}", default)
        if found is None:
            raise ModelError(f"{self.name} lacks {self.architecture}.{key}; convert the model with a current llama.cpp")
        return found.tolist() if hasattr(found, "tolist") else found

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a whole number of the architecture's metadata; the largest one, if there is one for each layer."""
        found = self.value(key, default)
        largest = max(found) if isinstance(found, list) and found else found
        if type(largest) is not int:
            raise ModelError(f"{self.architecture}.{key} of {self.name} is {found!r}, not a whole number; {REMEDY}")
        return largest

    def number(self, key: str, default: float | None = None) -> float:
        """Return a number of the architecture's metadata: of a float32, the shortest decimal that rounds to it."""
        found = self.value(key, default)
        if type(found) not in (int, float):
            raise ModelError(f"{self.architecture}.{key} of {self.name} is {found!r}, not a number; {REMEDY}")
        return float(str(np.float32(found)))


def split_files(folder: SourceFolder, name: FileName) -> list[Source]:
    """Return all files of a model, by the name of one.

    Raises:
        CheckpointError: a file is missing.
    """
    files = names_of_splits(name)
    if files == [name]:
        return [folder.source(name)]
    there = folder.names()
    missing = [each for each in files if each not in there]
    if missing:
        raise CheckpointError(f"{missing[0]} is missing from {folder.name}; {REMEDY}")
    return [folder.source(each) for each in files]


def _check_split(file: GgufFile, number: int, num_files: int) -> None:
    """Check that a file is the one of its number, of as many files as there are."""
    count, found = file.plain(NUM_SPLITS, int), file.plain(SPLIT_NUMBER, int)
    if (1 if count is None else count) != num_files:
        raise CheckpointError(
            f"{file.name} is one of {count or 1} files by its header, one of {num_files} by its name; give it the "
            "name that it was published under"
        )
    if (found or 0) != number:
        raise CheckpointError(
            f"{file.name} is file {(found or 0) + 1} by its header ({SPLIT_NUMBER}), not {number + 1}; {REMEDY}"
        )
