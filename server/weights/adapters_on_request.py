"""Loads adapters when requests name them for the first time, as vLLM's filesystem resolver does."""

from __future__ import annotations

import logging
from contextlib import suppress
from itertools import islice
from pathlib import Path, PurePosixPath

from server.engine.interface import RequestRefusedError
from server.model.adapters.errors import AdapterError
from server.model.lora.peft_files import locate
from server.weights.adapter_folders import is_adapter
from server.weights.adapter_registry import NAME, AdapterRegistry

MAX_FILES = 1000  # that are looked at to see whether a refused adapter has changed

FolderState = tuple[tuple[str, int, int], ...]  # path, time of its last change, and bytes of each file

log = logging.getLogger(__name__)


class AdaptersOnRequest:
    """An ``AdapterLoader``: loads an adapter from the folder of its name. Its caller loads one after the other.

    An adapter that was refused is not read again before its files change.

    Args:
        folder: the folder below which adapters are.
    """

    def __init__(self, registry: AdapterRegistry, folder: Path):
        self._registry, self._folder = registry, folder
        self._refused: dict[str, tuple[FolderState, str]] = {}  # and why

    def load(self, name: str) -> bool:
        if self._registry.find(name) is not None:
            return True
        folder = self._find(name)
        if folder is None:
            return False
        state = _state_of(folder)
        known = self._refused.get(name)
        if known is not None and known[0] == state:
            raise RequestRefusedError(known[1], "model")
        try:
            self._registry.load(name, name)
        except RequestRefusedError as error:
            if self._registry.find(name) is not None:  # an administrator has just loaded it
                return True
            log.warning("the adapter %s can't be loaded for a request: %s", name, error)
            reason = f"the adapter {name!r} can't be loaded: {error}"
            self._refused[name] = (state, reason)
            raise RequestRefusedError(reason, "model") from error
        self._refused.pop(name, None)
        return True

    def _find(self, name: str) -> Path | None:
        """Return the folder of an adapter; None if there is none. A folder has one name only."""
        if not NAME.fullmatch(name) or str(PurePosixPath(name)) != name:
            return None
        try:
            folder = locate(name, self._folder)
            return folder if is_adapter(folder) else None
        except (AdapterError, OSError):
            return None


def _state_of(folder: Path) -> FolderState:
    """Return what changes with the files of a folder."""
    found = []
    for path in islice(folder.rglob("*"), MAX_FILES):
        with suppress(OSError):  # it has just gone
            status = path.lstat()
            found.append((str(path), status.st_mtime_ns, status.st_size))
    return tuple(sorted(found))
