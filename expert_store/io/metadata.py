"""Reader of metadata files, which must be regular and of bounded size; JSON objects are of bounded depth."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

from expert_store.errors import CheckpointError, source_error
from expert_store.sources.regular_file import REMEDY, open_regular

MAX_METADATA_BYTES = 100_000_000
MAX_DEPTH = 64


def check_metadata_file(path: Path) -> None:
    """Check that a file which somebody else will read is a regular one and not too large.

    Raises:
        CheckpointError: see ``open_regular``.
    """
    open_regular(path, MAX_METADATA_BYTES).close()


def read_metadata(path: Path, remedy: str = REMEDY) -> bytes:
    """Return the bytes of a metadata file.

    Raises:
        CheckpointError: see ``open_regular``.
    """
    with closing(open_regular(path, MAX_METADATA_BYTES, remedy)) as file:
        try:
            return file.read(MAX_METADATA_BYTES)
        except OSError as error:
            raise source_error(str(path), error) from error


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
