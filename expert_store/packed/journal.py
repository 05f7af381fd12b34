"""Journal of an unfinished pack: its folders, the records that are written, and the checksum of each."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

from pydantic import RootModel, ValidationError

from expert_store.keys import ExpertKey
from expert_store.packed.names import DataFolderName, PlainName
from expert_store.packed.sync import sync

HEADER = b"greenroom pack journal 1\n"
RECORD = re.compile(rb"([0-9]{1,9}) ([0-9]{1,9}) ([0-9a-f]{16}) \.")


class _Folder(RootModel[tuple[DataFolderName, frozenset[PlainName]]]):
    """A data folder and the names of its files."""


class Journal:
    """A file with a line for each data folder, written before the folder is made, and one for each finished record.

    A line of a record is appended in one write after the record was written. The journal may name records that did not
    reach the disk, or end in half a line, so a writer that continues from it compares each record with its checksum.
    Lines that no writer writes are left out, as what the journal names may be removed.
    """

    def __init__(self, path: Path):
        self.path = path
        self.folders: dict[str, frozenset[str]] = {}  # the names of each folder's files
        self.finished: dict[ExpertKey, int] = {}
        self._lock = threading.Lock()  # guards the file
        if path.is_file():
            content = path.read_bytes()
            if content.startswith(HEADER):
                self._parse(content.splitlines()[1:])

    @property
    def is_foreign(self) -> bool:
        """True if what has the journal's name is something else. A journal may end in the middle of its first line."""
        if self.path.is_symlink() or not self.path.is_file():
            return True
        with self.path.open("rb") as file:
            start = file.read(len(HEADER))
        return not HEADER.startswith(start)

    def begin(self, folders: Mapping[str, frozenset[str]]) -> None:
        """Forget all records, and name these folders alone."""
        self.folders, self.finished = dict(folders), {}
        self.path.write_bytes(HEADER + b"".join(_line(name, files) for name, files in folders.items()))
        sync(self.path)
        sync(self.path.parent)

    def name_folder(self, name: str, files: frozenset[str]) -> None:
        """Name a further folder."""
        self.folders[name] = files
        with self:
            os.write(self._file, _line(name, files))
            os.fsync(self._file)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.folders, self.finished = {}, {}

    def __enter__(self) -> Self:
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        os.write(self._file, b"\n")  # ends half a line that an interruption may have left
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def add(self, key: ExpertKey, checksum: int) -> None:
        """Note that a record was written."""
        with self._lock:
            os.write(self._file, f"{key.layer} {key.expert} {checksum:016x} .\n".encode())

    def _parse(self, lines: list[bytes]) -> None:
        for line in lines:
            if line.startswith(b"["):
                with suppress(ValidationError):
                    folder = _Folder.model_validate_json(line)
                    self.folders[folder.root[0]] = folder.root[1]
            elif (record := RECORD.fullmatch(line)) is not None:
                layer, expert, checksum = record.groups()
                self.finished[ExpertKey(int(layer), int(expert))] = int(checksum, 16)


def _line(name: str, files: frozenset[str]) -> bytes:
    return json.dumps([name, sorted(files)]).encode() + b"\n"
