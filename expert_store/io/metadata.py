"""Reader of metadata files, which must be regular and of bounded size; JSON objects are of bounded depth."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from expert_store.errors import CheckpointError, SourceError, source_error
from expert_store.sources.base import OpenSource, Piece, Source
from expert_store.sources.folder import as_source
from expert_store.sources.regular_file import REMEDY, open_regular

MAX_METADATA_BYTES = 100_000_000
MAX_DEPTH = 64


def check_metadata_file(path: Path) -> None:
    """Check that a file which somebody else will read is a regular one and not too large.

    Raises:
        CheckpointError: see ``open_regular``.
    """
    open_regular(path, MAX_METADATA_BYTES).close()


def read_metadata(file: Path | Source, remedy: str = REMEDY) -> bytes:
    """Return the bytes of a metadata file.

    Raises:
        CheckpointError: it can't be read, or is too large; see ``open_regular``.
    """
    if isinstance(file, Path):
        with closing(open_regular(file, MAX_METADATA_BYTES, remedy)) as metadata:
            try:
                return metadata.read(MAX_METADATA_BYTES)
            except OSError as error:
                raise source_error(str(file), error) from error
    try:
        with closing(file.open(is_direct=False)) as opened:
            nbytes = opened.identity.nbytes
            if nbytes > MAX_METADATA_BYTES:
                raise CheckpointError(f"{file.name} is {nbytes} bytes long, more than {MAX_METADATA_BYTES}; {remedy}")
            return read_bytes(opened, 0, nbytes)
    except SourceError as error:
        raise error.naming(file.name) from error


def read_bytes(opened: OpenSource, offset: int, nbytes: int) -> bytes:
    """Return some bytes of a source.

    Raises:
        SourceError: they can't be read.
    """
    target = np.empty(nbytes, dtype=np.uint8)
    opened.read([Piece(offset, target)])
    return target.tobytes()


def read_json_object(file: Path | Source, remedy: str = REMEDY) -> dict[str, Any]:
    """Return the content of a metadata file that is one JSON object.

    Raises:
        CheckpointError: see ``read_metadata`` and ``parse_json_object``.
    """
    return parse_json_object(read_metadata(file, remedy), as_source(file).name, remedy)


def parse_json_object(raw: bytes, name: str, remedy: str = REMEDY) -> dict[str, Any]:
    """Return the JSON object that some bytes are.

    Args:
        name: of the file, or the part of one, for messages.

    Raises:
        CheckpointError: the bytes are not JSON, not an object, or nested too deeply.
    """
    try:
        content = json.loads(raw.decode("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{name} is damaged: it is not JSON ({error}); {remedy}") from error
    except RecursionError as error:
        raise CheckpointError(f"{name} is nested too deeply; {remedy}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{name} is not a JSON object; {remedy}")
    level: list[Any] = [content]
    for _ in range(MAX_DEPTH):
        inner = [each.values() if isinstance(each, dict) else each for each in level]
        level = [value for values in inner for value in values if isinstance(value, dict | list)]
        if not level:
            return content
    raise CheckpointError(f"{name} is nested too deeply; {remedy}")
