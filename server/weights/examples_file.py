"""Reads ``routing.json``, which says in an adapter's folder for which prompts the adapter is meant."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from server.engine.interface import AdapterExamples, RequestRefusedError
from server.model.adapters.errors import AdapterError

NAME = "routing.json"
FIELDS = {"description", "examples"}
MAX_BYTES = 2 << 20


def read_examples(folder: Path, root: Path | None = None) -> AdapterExamples:
    """Return the examples of an adapter; none if its folder has no such file.

    Args:
        root: the folder that must hold the file, too, if it is a link; None if any may.

    Raises:
        AdapterError: the file can't be used.
    """
    path = folder / NAME
    if not os.path.lexists(path):
        return AdapterExamples()
    try:
        real = path.resolve(strict=True)
        if root is not None and not real.is_relative_to(root.resolve(strict=True)):
            raise AdapterError(f"{path} is a link out of {root}; copy the file into it")
        if not stat.S_ISREG(real.stat().st_mode):
            raise AdapterError(f"{path} is not a regular file")
        with real.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, RuntimeError) as error:  # a loop of links
        reason = error.strerror if isinstance(error, OSError) else error
        raise AdapterError(f"{path} can't be read: {reason}") from error
    if len(content) > MAX_BYTES:
        raise AdapterError(f"{path} has more than {MAX_BYTES >> 20} MiB; write fewer or shorter examples")
    return _parse(path, content)


def _parse(path: Path, content: bytes) -> AdapterExamples:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise AdapterError(f"{path} must be an object with 'description' and 'examples'")
    unknown = sorted(value.keys() - FIELDS)
    if unknown:
        raise AdapterError(f"{path} has the unknown field {unknown[0][:60]!r}; use 'description' and 'examples'")
    description, examples = value.get("description"), value.get("examples")
    if not isinstance(description, str | None):
        raise AdapterError(f"'description' in {path} must be a string")
    if examples is not None and not _are_texts(examples):
        raise AdapterError(f"'examples' in {path} must be a list of strings")
    try:
        return AdapterExamples.checked(description, examples)
    except RequestRefusedError as error:
        raise AdapterError(f"{path}: {error}") from error


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)
