"""The folder of a packed model while it is written: one writer, and always a complete model, old or new."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from expert_store.errors import CheckpointError, PackError
from expert_store.packed.journal import Journal
from expert_store.packed.manifest import MANIFEST_NAME, Manifest, named_folder, read_manifest
from expert_store.packed.sync import sync

LOCK_NAME = ".lock"
JOURNAL_NAME = ".journal"
PARTIAL_SUFFIX = ".partial"
NEW_MANIFEST_NAME = MANIFEST_NAME + ".new"


class DataFolder(NamedTuple):
    """The data folder of a pack that is to be written."""

    name: str
    files: frozenset[str]


class PackFolder:
    """A folder that a model is packed into, locked against other writers.

    A data folder is written as ``NAME.partial``, flushed, and renamed to ``NAME``. Then a manifest that names it
    atomically replaces the old one, and the folder before is removed. After a kill at any point, the next writer
    continues from the files that it finds. Only what the manifest, the journal or the planned pack names is removed.

    Args:
        planned: the data folder of the pack that is to be written.
    """

    def __init__(self, path: Path, planned: DataFolder):
        self.path = path
        self.journal = Journal(path / JOURNAL_NAME)
        self._planned = planned

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Create the folder if needed, and lock it against other writers.

        Raises:
            PackError: it holds something else, or another writer has locked it.
            OSError: it can't be created or written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / LOCK_NAME).exists():
            self._refuse_foreign_content()  # nothing is created there
        lock = os.open(self.path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise PackError(f"another greenroom pack is writing to {self.path}; wait for it or stop it") from error
            self.journal = Journal(self.path / JOURNAL_NAME)  # the writer before has left it
            self._refuse_foreign_content()
            yield
        finally:
            os.close(lock)

    @property
    def manifest(self) -> Manifest | None:
        """The manifest of the finished pack; None if there is none, or it is damaged."""
        with suppress(CheckpointError):
            return read_manifest(self.path)
        return None

    def partial(self) -> Path:
        """Return the unfinished data folder of the planned pack, of an earlier run or new; remove all others."""
        in_use = self._in_use()
        name = self._planned.name
        if name in in_use:  # the one in use is damaged; it is replaced later
            name += "-2"
        folder, finished = self.path / (name + PARTIAL_SUFFIX), self.path / name
        if finished.exists() and not folder.exists():  # no manifest names it
            finished.rename(folder)
        kept = in_use | {folder.name}
        left = self._remove_all_but(kept)
        if name not in self.journal.folders:
            self.journal.begin({name: self._planned.files} | left)
        folder.mkdir(exist_ok=True)
        return folder

    def publish(self, partial: Path, manifest: Manifest) -> None:
        """Let the manifest name a finished data folder, then remove the one before."""
        for file in manifest.files:
            sync(partial / file)
        sync(partial)
        partial.rename(self.path / manifest.data)
        sync(self.path)
        ours = self._ours()
        for name in self._in_use() - {manifest.data}:
            self.journal.name_folder(name, ours[name])
        new = self.path / NEW_MANIFEST_NAME
        new.write_bytes(manifest.to_bytes())
        sync(new)
        new.replace(self.path / MANIFEST_NAME)
        sync(self.path)
        self.tidy()

    def tidy(self) -> None:
        """Remove every data folder that is not in use, and the journal."""
        if not self._remove_all_but(self._in_use()):
            self.journal.remove()

    def _ours(self) -> dict[str, frozenset[str]]:
        """Return the names of the files of each data folder that manifest, journal or plan names."""
        named = dict.fromkeys((self._planned.name, self._planned.name + "-2"), self._planned.files)
        for name, files in [*self.journal.folders.items(), *named_folder(self.path).items()]:
            named[name] = named.get(name, frozenset()) | files
        return named | {name + PARTIAL_SUFFIX: files for name, files in named.items()}

    def _in_use(self) -> set[str]:
        """Return the data folder that the manifest names; if the manifest is damaged, all that it might name."""
        manifest = self.manifest
        if manifest is not None:
            return {manifest.data}
        if not (self.path / MANIFEST_NAME).exists():
            return set()
        return {name for name in self._ours() if not name.endswith(PARTIAL_SUFFIX) and (self.path / name).is_dir()}

    def _remove_all_but(self, kept: set[str]) -> dict[str, frozenset[str]]:
        """Remove our data folders and an unfinished manifest; return the folders that others still hold files in."""
        if self.journal.folders:
            (self.path / NEW_MANIFEST_NAME).unlink(missing_ok=True)
        left = {}
        for name, files in self._ours().items():
            if name not in kept and not self._remove(self.path / name, files):
                left[name.removesuffix(PARTIAL_SUFFIX)] = files
        return left

    def _remove(self, folder: Path, files: frozenset[str]) -> bool:
        """Remove some files of a folder, and the folder if nothing is left in it; return False if something is."""
        if not folder.is_dir():
            return True
        for name in files:
            (folder / name).unlink(missing_ok=True)
        try:
            folder.rmdir()
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
            return False
        return True

    def _refuse_foreign_content(self) -> None:
        ours, has_data, foreign = self._ours(), False, []
        for path in sorted(self.path.iterdir()):
            if path.name in ours:
                has_data = True
                foreign += _others(path, ours[path.name])
            elif not (
                path.name in {LOCK_NAME, MANIFEST_NAME}
                or (path.name == JOURNAL_NAME and not self.journal.is_foreign)
                or (path.name == NEW_MANIFEST_NAME and self.journal.folders)
            ):
                foreign.append(path)
        manifest = self.path / MANIFEST_NAME
        if manifest.exists() and not has_data and self.manifest is None:
            foreign.append(manifest)
        if foreign:
            raise PackError(
                f"{self.path} is neither empty nor a packed model: it holds {foreign[0].relative_to(self.path)}; "
                "move that away, or give an empty folder"
            )


def _others(folder: Path, files: frozenset[str]) -> list[Path]:
    """Return the content of a data folder that is not among its files."""
    if folder.is_symlink() or not folder.is_dir():
        return [folder]
    return [path for path in sorted(folder.iterdir()) if path.name not in files or path.is_dir() or path.is_symlink()]
