"""Finds the folders below ``--adapters-dir`` or ``--experts-dir`` that look as if they could be loaded."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection
from pathlib import Path

from server.engine.interface import RequestRefusedError

log = logging.getLogger(__name__)

MAX_FOLDERS = 1000  # returned
MAX_VISITED = 10_000
MAX_DEPTH = 3  # below the root


def list_folders(root: Path | None, flag: str, is_loadable: Callable[[Collection[str]], bool]) -> list[str] | None:
    """Return the folders below the root that a flag named; None without one.

    Raises:
        RequestRefusedError: the root can't be read.
    """
    if root is None:
        return None
    try:
        return find_folders(root, is_loadable)
    except OSError as error:
        raise RequestRefusedError(f"the folder of {flag} can't be read: {error.strerror}") from error


def find_folders(root: Path, is_loadable: Callable[[Collection[str]], bool]) -> list[str]:
    """Return the paths of folders relative to the root, sorted. Links out of it are left out, as are hidden folders.

    A list that is cut is a warning in the log.

    Args:
        is_loadable: is called with the names in a folder. Nothing is read but these.

    Raises:
        OSError: the root can't be read.
    """
    real_root = root.resolve(strict=True)
    _, level = _names_and_folders(root, real_root)
    found: list[Path] = []
    num_visited = 0
    for _ in range(MAX_DEPTH):
        below: list[Path] = []
        for folder in sorted(level):
            if len(found) == MAX_FOLDERS or num_visited == MAX_VISITED:
                log.warning(
                    "the list of %s ends after %d folders, of which %d can be loaded: name others by their path",
                    *(root, num_visited, len(found)),
                )
                return _relative(found, root)
            num_visited += 1
            try:
                names, folders = _names_and_folders(folder, real_root)
            except OSError:  # what can't be read can't be loaded
                continue
            below += folders
            if is_loadable(names):
                found.append(folder)
        level = below
    return _relative(found, root)


def _relative(folders: list[Path], root: Path) -> list[str]:
    return sorted(folder.relative_to(root).as_posix() for folder in folders)


def _names_and_folders(folder: Path, real_root: Path) -> tuple[list[str], list[Path]]:
    """Return all names in a folder, and the folders in it that may be visited."""
    with os.scandir(folder) as opened:
        entries = list(opened)
    folders = [Path(entry.path) for entry in entries if not entry.name.startswith(".") and _is_folder(entry)]
    return [entry.name for entry in entries], [each for each in folders if each.resolve().is_relative_to(real_root)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return True for a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into what can't be read
        return False
