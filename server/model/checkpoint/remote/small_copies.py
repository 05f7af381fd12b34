"""Copies of small files of a place elsewhere, for libraries that read only paths."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Collection
from fnmatch import fnmatch
from pathlib import Path

from expert_store import SourceFolder, read_metadata


class SmallCopies:
    """A folder on this machine that is deleted when the process ends.

    Args:
        name: of the folder, for messages.
    """

    def __init__(self, name: str):
        folder = Path(tempfile.mkdtemp(prefix="greenroom-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        self._folder = folder / (name or "model")
        self._folder.mkdir()

    def copy(self, place: SourceFolder, patterns: Collection[str]) -> Path:
        """Copy the files of some patterns that are not here yet, and return the folder.

        Raises:
            SourceError: one can't be read.
        """
        for name in place.names():
            target = self._folder / name
            is_wanted = not name.folder and any(fnmatch(name, pattern) for pattern in patterns)  # a * matches slashes
            if is_wanted and not target.exists():
                target.write_bytes(read_metadata(place.source(name)))
        return self._folder
