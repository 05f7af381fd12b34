"""OpenFiles: the files of one set of weights, open while it is in use."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from expert_store.errors import CheckpointError
from expert_store.io.direct_io import DirectFile


class OpenFiles:
    """Files that reader threads share. ``close`` closes them once no thread reads any more. Thread-safe.

    Raises:
        OSError: a file can't be opened; the others are closed again.
    """

    def __init__(self, paths: Iterable[Path]):
        self._files: dict[Path, DirectFile] = {}
        self._num_readers = 0
        self._is_closed = False
        self._lock = threading.Lock()
        try:
            for path in paths:
                self._files[path] = DirectFile(path)
        except OSError:
            self.close()
            raise

    def __getitem__(self, path: Path) -> DirectFile:
        """Return an open file, to be read within ``reading``.

        Raises:
            CheckpointError: all were closed meanwhile.
        """
        try:
            return self._files[path]
        except KeyError:
            raise CheckpointError(f"{path} was closed, as its weights were removed") from None

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Keep the files open."""
        with self._lock:
            self._num_readers += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_readers -= 1
                self._close_if_unused()

    def changed(self) -> set[Path]:
        """Return the files that were written to since they were opened, as far as the storage tells."""
        with self.reading():
            return {path for path, file in self._files.items() if _has_changed(file)}

    def close(self) -> None:
        """Close the files, or let the last reader do so."""
        with self._lock:
            self._is_closed = True
            self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._is_closed and not self._num_readers:
            for file in self._files.values():
                file.close()
            self._files.clear()


def _has_changed(file: DirectFile) -> bool:
    try:
        return file.has_changed()
    except OSError:  # the storage is gone; reads fail with the reason
        return False
