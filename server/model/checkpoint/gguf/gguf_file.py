"""A model's GGUF file, or the files that it is split into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from expert_store import CheckpointError, FileSource, GgufHeader, GgufTensor, read_gguf_header
from server.model.checkpoint.local_files import GGUF, SPLIT_FILE
from server.model.errors import ModelError

NUM_SPLITS, SPLIT_NUMBER, NUM_TENSORS = "split.count", "split.no", "split.tensors.count"
ARCHITECTURE = "general.architecture"
PROJECTORS = ("clip", "mmproj")  # architectures of files with the image part of a model
REMEDY = "download all files of the model again"


@dataclass(frozen=True)
class GgufFile:
    """The metadata and the tensors of a model in the GGUF format."""

    path: Path  # the first file
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read the header of a file, and of the others that it is split into.

        Args:
            path: any file of a model.

        Raises:
            CheckpointError: a header is damaged, a file is missing, or files do not belong to each other.
            ModelError: the file has no architecture of a language model.
        """
        headers = [read_gguf_header(FileSource(each)) for each in split_files(path)]
        metadata = headers[0].metadata
        tensors: dict[str, GgufTensor] = {}
        for number, header in enumerate(headers):
            _check_split(path, number, header, headers)
            for tensor in header.tensors:
                if tensor.name in tensors:
                    first, second = (each.source.extent.source.name for each in (tensors[tensor.name], tensor))
                    raise CheckpointError(f"{tensor.name} is in both {first} and {second}; {REMEDY}")
                tensors[tensor.name] = tensor
        count = metadata.get(NUM_TENSORS)
        if count is not None and count != len(tensors):
            raise CheckpointError(f"the files of {path.name} hold {len(tensors)} tensors, not {count}; {REMEDY}")
        found = cls(path, metadata, tensors)
        if found.architecture in PROJECTORS:
            raise ModelError(f"{path.name} is the image part of a model; give the file of its language model")
        return found

    @property
    def architecture(self) -> str:
        """The name that llama.cpp gives the architecture."""
        name = self.metadata.get(ARCHITECTURE)
        if not isinstance(name, str):
            raise ModelError(f"{self.path.name} does not say which architecture it is ({ARCHITECTURE}); {REMEDY}")
        return name

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
            raise ModelError(
                f"{self.path.name} lacks {self.architecture}.{key}; convert the model with a current llama.cpp"
            )
        return found.tolist() if hasattr(found, "tolist") else found

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a whole number of the architecture's metadata; the largest one, if there is one for each layer."""
        found = self.value(key, default)
        largest = max(found) if isinstance(found, list) and found else found
        if type(largest) is not int:
            raise ModelError(
                f"{self.architecture}.{key} of {self.path.name} is {found!r}, not a whole number; {REMEDY}"
            )
        return largest

    def number(self, key: str, default: float | None = None) -> float:
        """Return a number of the architecture's metadata: of a float32, the shortest decimal that rounds to it."""
        found = self.value(key, default)
        if type(found) not in (int, float):
            raise ModelError(f"{self.architecture}.{key} of {self.path.name} is {found!r}, not a number; {REMEDY}")
        return float(str(np.float32(found)))


def split_files(path: Path) -> list[Path]:
    """Return all files of a model, by the name of one.

    Raises:
        CheckpointError: a file is missing.
    """
    match = SPLIT_FILE.fullmatch(path.name)
    if match is None:
        return [path]
    base, _, count = match.groups()
    files = [path.with_name(f"{base}-{number:05d}-of-{count}{GGUF}") for number in range(1, int(count) + 1)]
    missing = [each.name for each in files if not each.exists()]
    if missing:
        raise CheckpointError(f"{missing[0]} is missing from {path.parent}; {REMEDY}")
    return files


def _check_split(path: Path, number: int, header: GgufHeader, headers: Sequence[GgufHeader]) -> None:
    """Check that a file is the one of its number, of as many files as there are."""
    count = header.metadata.get(NUM_SPLITS, 1)
    if count != len(headers):
        raise CheckpointError(
            f"{path.name} is one of {count} files by its header, one of {len(headers)} by its name; give it the "
            "name that it was published under"
        )
    if header.metadata.get(SPLIT_NUMBER, 0) != number:
        raise CheckpointError(
            f"file {number + 1} of {path.name} says that it is another one ({SPLIT_NUMBER} is "
            f"{header.metadata.get(SPLIT_NUMBER)}); {REMEDY}"
        )
