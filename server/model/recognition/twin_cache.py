"""Keeps what twins showed in the user's cache folder: each config is tried once with each version of the software."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Self

from transformers import PreTrainedModel

from server.kernels import native
from server.model import blocks, declarations, families, native_layers, recognition
from server.model.blocks.errors import UnsupportedLayerError
from server.model.declarations.codec import from_json, to_json
from server.model.declarations.declaration import Declaration

log = logging.getLogger(__name__)

FOLDER, BASE, DEFAULT_BASE = "greenroom/twins", "XDG_CACHE_HOME", "~/.cache"  # the second is a variable
MOST_FILES = 200
LIBRARIES = ("torch", "transformers")
SOURCES = (blocks, declarations, families, native, native_layers, recognition)  # packages
IGNORED = ("_name_or_path", "dtype", "quantization_config", "transformers_version")  # keys that change no twin
REASON = "reason"  # key of a file about a model that the kernels can't run


@dataclass(frozen=True)
class TwinCache:
    """The file of one model's twin.

    Args:
        file: a checksum and JSON; None if there is no folder for it.
    """

    file: Path | None

    @classmethod
    def of(cls, model: PreTrainedModel, longest: int) -> Self:
        """Return the file of a model, which may not be there.

        Args:
            model: with or without weights.
            longest: tokens of the longest sequence.
        """
        described = [type(model).__name__, longest, _without_ignored(model.config.to_dict()), _versions()]
        text = json.dumps(described, sort_keys=True, default=repr)
        try:
            base = Path(os.environ.get(BASE) or DEFAULT_BASE).expanduser()
        except RuntimeError:  # there is no home
            return cls(None)
        return cls(base / FOLDER / f"{hashlib.sha256(text.encode()).hexdigest()}.json")

    def read(self) -> Declaration | None:
        """Return what the twin showed; None if that is not known, as from a damaged file.

        Raises:
            UnsupportedLayerError: it showed that the native kernels can't run the model.
        """
        if self.file is None:
            return None
        try:
            text = _unsealed(self.file.read_text("utf-8"))
            reason = _reason_in(text)
            if reason is None:
                return from_json(text)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.debug("%s is ignored: %s", self.file, error)
            return None
        raise UnsupportedLayerError(reason)

    def write(self, found: Declaration | UnsupportedLayerError) -> None:
        """Keep what the twin showed, if there is room for it.

        Args:
            found: what the model is, or why the native kernels can't run it.
        """
        if self.file is None:
            return
        text = to_json(found) if isinstance(found, Declaration) else json.dumps({REASON: str(found)})
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with NamedTemporaryFile("w", dir=self.file.parent, suffix=".tmp", delete=False, encoding="utf-8") as file:
                file.write(_sealed(text))
            Path(file.name).replace(self.file)
            _remove_oldest(self.file.parent)
        except (OSError, TypeError) as error:  # TypeError: it has a value that JSON does not have
            log.debug("%s was not written: %s", self.file, error)


def _sealed(text: str) -> str:
    """Return a text behind a line with its checksum."""
    return f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def _unsealed(content: str) -> str:
    """Return the text in what ``_sealed`` returned.

    Raises:
        ValueError: it has changed since.
    """
    text = content.partition("\n")[2]
    if _sealed(text) != content:
        raise ValueError("its checksum is that of another content")
    return text


def _reason_in(text: str) -> str | None:
    found = json.loads(text)
    return str(found[REASON]) if isinstance(found, dict) and isinstance(found.get(REASON), str) else None


def _remove_oldest(folder: Path) -> None:
    files = sorted(folder.glob("*.json"), key=lambda file: file.stat().st_mtime)
    for file in files[:-MOST_FILES]:
        file.unlink(missing_ok=True)


def _without_ignored(values: Any) -> Any:
    """Return the values of a config and of those within it, but for keys that change no twin."""
    if isinstance(values, Mapping):
        return {str(key): _without_ignored(value) for key, value in values.items() if key not in IGNORED}
    return [_without_ignored(each) for each in values] if isinstance(values, list | tuple) else values


@cache
def _versions() -> list[str]:
    """Return what another result of the same config may come from: libraries, and the sources that find it."""
    digest = hashlib.sha256()
    folders = [Path(str(package.__file__)).parent for package in SOURCES]
    for file in sorted(file for folder in folders for file in folder.rglob("*") if file.suffix in (".py", ".so")):
        digest.update(file.read_bytes())
    return [*map(version, LIBRARIES), digest.hexdigest()]
