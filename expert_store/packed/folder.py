"""The folder of a packed model while it is written: one writer, old or new at every moment, never half."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from expert_store.errors import CheckpointError, PackError

from .manifest import DATA_FOLDER, MANIFEST_NAME, Manifest, read_manifest

LOCK_NAME = ".lock"
JOURNAL_NAME = "journal"
PARTIAL_SUFFIX = ".partial"
NEW_MANIFEST_NAME = MANIFEST_NAME + ".new"
OUR_FOLDER = re.compile(rf"{DATA_FOLDER}(\{PARTIAL_SUFFIX})?")


class PackFolder:
    """A target of packing, locked against other writers.

    A data folder is written as ``ID.partial``, flushed, renamed to ``ID``, and then named by a manifest that
    replaces the old one in one step; what no manifest names is removed afterwards. A writer that was killed anywhere
    in between goes on from what it finds.
    """

    def __init__(self, path: Path):
        self.path = path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder if need be, and keep other writers out.

        Raises:
            PackError: it holds something else, or another writer is at it.
            OSError: it can't be made or written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._refuse_foreign_content()
        lock = os.open(self.path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise PackError(f"another greenroom pack is writing to {self.path}; let it end or stop it") from error
            yield
        finally:
            os.close(lock)

    @property
    def manifest(self) -> Manifest | None:
        """The manifest of the pack that is served now; None if there is none, or it is damaged."""
        with suppress(CheckpointError):
            return read_manifest(self.path)
        return None

    def partial(self, identity: str) -> Path:
        """The unfinished data folder of this identity, kept from an earlier run or new; others are removed."""
        in_use = self._in_use()
        name = f"{identity}-2" if identity in in_use else identity  # the one in use is damaged, and stays till then
        folder, finished = self.path / (name + PARTIAL_SUFFIX), self.path / name
        if finished.exists():  # no manifest came to name it
            if folder.exists():
                shutil.rmtree(finished)
            else:
                finished.rename(folder)
        self._remove_all_but(in_use | {folder.name})
        folder.mkdir(exist_ok=True)
        return folder

    def publish(self, partial: Path, manifest: Manifest) -> None:
        """Make a finished data folder the one that the manifest names, then remove what was there before."""
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
        """Remove every data folder that is not in use, finished or not, and the journal of the one that is."""
        in_use = self._in_use()
        self._remove_all_but(in_use)
        for name in in_use:
            (self.path / name / JOURNAL_NAME).unlink(missing_ok=True)

    def _in_use(self) -> set[str]:
        """The data folder that the manifest names; if it is there but can't be read, all that it might name."""
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
                f"{self.path} is neither empty nor a packed model: it holds {foreign[0]}; give a folder of its own"
            )


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
