"""Journal of an unfinished pack: the records that are written, and the checksum of each."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Self

from expert_store.keys import ExpertKey


class Journal:
    """A file with one line per record, appended in one write after the record was written.

    It may name records that did not reach the disk, or end in half a line, so a writer that continues from it compares
    each record with its checksum.
    """

    def __init__(self, path: Path):
        self.finished: dict[ExpertKey, int] = {}
        with suppress(FileNotFoundError):
            for line in path.read_bytes().splitlines():
                with suppress(ValueError):
                    layer, expert, checksum, end = line.split()
                    if end == b".":
                        self.finished[ExpertKey(int(layer), int(expert))] = int(checksum, 16)
        self._path = path
        self._lock = threading.Lock()  # guards the file

    def __enter__(self) -> Self:
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        os.write(self._file, b"\n")  # ends half a line that an interruption may have left
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def add(self, key: ExpertKey, checksum: int) -> None:
        """Note that a record was written."""
        with self._lock:
            os.write(self._file, f"{key.layer} {key.expert} {checksum:016x} .\n".encode())
