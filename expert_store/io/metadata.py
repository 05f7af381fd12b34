"""Reader of metadata files, which must be regular and of bounded size; JSON objects are of bounded depth."""

from __future__ import annotations

import json
import os
import stat
from contextlib import closing
from io import FileIO
from pathlib import Path
from typing import Any

from expert_store.errors import CheckpointError

MAX_METADATA_BYTES = 100_000_000
MAX_DEPTH = 64
REMEDY = "download the checkpoint again"


def open_regular(path: Path, most: int | None = MAX_METADATA_BYTES, remedy: str = REMEDY) -> FileIO:
    """Open a file for reading if it is a regular one; never waits for the writer of a pipe.

    Args:
        most: the largest size in bytes; None for any.
        remedy: what to do about a file that is refused, for the message.

    Raises:
        CheckpointError: the file can't be opened, is not a regular file, or is too large; the message names it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    status = os.fstat(descriptor)
    is_regular = stat.S_ISREG(status.st_mode)
    if is_regular and (most is None or status.st_size <= most):
        return FileIO(descriptor)
    os.close(descriptor)
    if is_regular:
        raise CheckpointError(f"{path} is {status.st_size} bytes long, more than {most}; {remedy}")
    raise CheckpointError(f"{path} is not a regular file; {remedy}")


def check_metadata_file(path: Path) -> None:
    """Check that a file which somebody else will read is a regular one and not too large.

    Raises:
        CheckpointError: see ``open_regular``.
    """
    open_regular(path).close()


def read_metadata(path: Path, remedy: str = REMEDY) -> bytes:
    """Return the bytes of a metadata file.

    Raises:
        CheckpointError: see ``open_regular``.
    """
    with closing(open_regular(path, MAX_METADATA_BYTES, remedy)) as file:
        try:
            return file.read(MAX_METADATA_BYTES)
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}") from error


def read_json_object(path: Path, remedy: str = REMEDY) -> dict[str, Any]:
    """Return the content of a metadata file that is one JSON object.

    Raises:
        CheckpointError: see ``open_regular`` and ``parse_json_object``.
    """
    return parse_json_object(read_metadata(path, remedy), str(path), remedy)


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
