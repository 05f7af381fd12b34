"""The folder of a packed model while it is written: one writer, and always a complete model, old or new."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from expert_store.errors import CheckpointError, PackError
from expert_store.packed.manifest import DATA_FOLDER, MANIFEST_NAME, Manifest, read_manifest

LOCK_NAME = ".lock"
JOURNAL_NAME = "journal"
PARTIAL_SUFFIX = ".partial"
NEW_MANIFEST_NAME = MANIFEST_NAME + ".new"
OUR_FOLDER = re.compile(rf"{DATA_FOLDER}(\{PARTIAL_SUFFIX})?")


class PackFolder:
    """A folder that a model is packed into, locked against other writers.

    A data folder is written as ``ID.partial``, flushed, and renamed to ``ID``. Then a manifest that names it atomically
    replaces the old one, and folders that the manifest does not name are removed. After a kill at any point, the next
    writer continues from the files that it finds.
    """

    def __init__(self, path: Path):
        self.path = path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Create the folder if needed, and lock it against other writers.

        Raises:
            PackError: it holds something else, or another writer has locked it.
            OSError: it can't be created or written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._refuse_foreign_content()
        lock = os.open(self.path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise PackError(f"another greenroom pack is writing to {self.path}; wait for it or stop it") from error
            yield
        finally:
            os.close(lock)

    @property
    def manifest(self) -> Manifest | None:
        """The manifest of the finished pack; None if there is none, or it is damaged."""
        with suppress(CheckpointError):
            return read_manifest(self.path)
        return None

    def partial(self, identity: str) -> Path:
        """Return the unfinished data folder of this identity, of an earlier run or new; remove all others."""
        in_use = self._in_use()
        name = f"{identity}-2" if identity in in_use else identity  # the one in use is damaged; it is replaced later
        folder, finished = self.path / (name + PARTIAL_SUFFIX), self.path / name
        if finished.exists():  # no manifest names it
            if folder.exists():
                shutil.rmtree(finished)
            else:
                finished.rename(folder)
        self._remove_all_but(in_use | {folder.name})
        folder.mkdir(exist_ok=True)
        return folder

    def publish(self, partial: Path, manifest: Manifest) -> None:
        """Let the manifest name a finished data folder, then remove the one before."""
        for path in partial.iterdir():
            sync(path)
        sync(partial)
        partial.rename(self.path / manifest.data)
        sync(self.path)
        new = self.path / NEW_MANIFEST_NAME
        new.write_bytes(manifest.to_bytes())
        sync(new)
        new.replace(self.path / MANIFEST_NAME)
        sync(self.path)
        self.tidy()

    def tidy(self) -> None:
        """Remove every data folder that is not in use, and the journal of the one that is."""
        in_use = self._in_use()
        self._remove_all_but(in_use)
        for name in in_use:
            (self.path / name / JOURNAL_NAME).unlink(missing_ok=True)

    def _in_use(self) -> set[str]:
        """Return the data folder that the manifest names; if the manifest is damaged, all that it might name."""
        manifest = self.manifest
        if manifest is not None:
            return {manifest.data}
        if not (self.path / MANIFEST_NAME).exists():
            return set()
        return {path.name for path in self.path.iterdir() if re.fullmatch(DATA_FOLDER, path.name)}

    def _remove_all_but(self, kept: set[str]) -> None:
        (self.path / NEW_MANIFEST_NAME).unlink(missing_ok=True)
        for path in self.path.iterdir():
            if OUR_FOLDER.fullmatch(path.name) and path.name not in kept:
                shutil.rmtree(path)

    def _refuse_foreign_content(self) -> None:
        names = {path.name for path in self.path.iterdir()}
        ours = {name for name in names if OUR_FOLDER.fullmatch(name)}
        foreign = sorted(names - ours - {MANIFEST_NAME, NEW_MANIFEST_NAME, LOCK_NAME})
        if MANIFEST_NAME in names and not ours and self.manifest is None:
            foreign.append(MANIFEST_NAME)
        if foreign:
            raise PackError(
                f"{self.path} is neither empty nor a packed model: it holds {foreign[0]}; give an empty folder"
            )


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
