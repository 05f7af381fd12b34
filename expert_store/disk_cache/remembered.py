"""Remembered: names of files and versions of sources, for starts without a network."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

from expert_store.disk_cache.private_files import read_private, write_private
from expert_store.errors import FileNameError
from expert_store.file_name import FileName
from expert_store.sources.base import SourceIdentity

log = logging.getLogger(__name__)

SUFFIX = ".about"
MAX_BYTES = 64 << 20  # of a file, which has names of a folder


class Remembered:
    """Keeps what is known of folders and sources, in a folder that processes share.

    A failure of the disk is no exception: nothing is remembered then.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    def keep_names(self, folder: str, names: Collection[FileName]) -> None:
        """Remember the names of the files in a folder."""
        self._write(folder, {"names": sorted(names)})

    def names(self, folder: str) -> list[FileName] | None:
        """Return the names of the files in a folder; None if it is unknown, or one of them is refused."""
        found = self._read(folder).get("names")
        try:
            return [FileName(name) for name in found] if isinstance(found, list) else None
        except FileNameError as error:
            log.warning("what %s remembers of %s is not used: %s", self._folder, folder, error)
            return None

    def keep_identity(self, source: str, identity: SourceIdentity) -> None:
        """Remember size and version of a source."""
        self._write(source, identity._asdict())

    def identity(self, source: str) -> SourceIdentity | None:
        """Return size and version of a source; None if it is unknown."""
        found = self._read(source)
        try:
            return SourceIdentity(str(found["kind"]), tuple(found["version"]), int(found["nbytes"]))
        except (KeyError, TypeError, ValueError):
            return None

    def _write(self, name: str, about: dict[str, Any]) -> None:
        path = self._path(name)
        try:
            if self._read(name) != json.loads(json.dumps(about)):
                write_private(path, json.dumps(about).encode())
        except OSError as error:
            log.warning("%s can't remember %s: %s", self._folder, name, error)

    def _read(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads(read_private(self._path(name), MAX_BYTES))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _path(self, name: str) -> Path:
        return self._folder / f"{hashlib.blake2b(name.encode(), digest_size=20).hexdigest()}{SUFFIX}"
