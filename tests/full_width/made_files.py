"""Files of tensors whose bytes are made when they are read, so that a large model takes no disk and little memory."""

from __future__ import annotations

import json
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from expert_store import FileName, LocalFolder
from expert_store.sources.base import Bytes, Piece, Source, SourceFolder, SourceIdentity

MOST_KEPT = 4  # units whose bytes are kept, for reads of a unit in several pieces


@dataclass(frozen=True)
class MadeTensor:
    """A tensor of a file: units of equal length along its first dimension, or one unit.

    Attributes:
        dtype: as the file's header names it.
        make: returns the bytes of a unit.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    make: Callable[[int], Bytes]
    num_units: int = 1


@dataclass(frozen=True)
class MadeFile:
    """A header and the tensors behind it; see ``Source``, and open as it is."""

    name: str
    header: bytes = field(repr=False, compare=False)
    tensors: Sequence[MadeTensor] = field(repr=False, compare=False)
    alignment: int = field(default=1, compare=False)
    _units: OrderedDict[tuple[int, int], Bytes] = field(default_factory=OrderedDict, repr=False, compare=False)
    _lock: Any = field(default_factory=threading.Lock, repr=False, compare=False)  # of the units

    @property
    def short_name(self) -> str:
        return self.name.rpartition("/")[2]

    def open(self, *, is_direct: bool = True) -> MadeFile:
        del is_direct
        return self

    @cached_property
    def _ends(self) -> list[int]:
        """Return the ends of the header and of each tensor, with the bytes that fill the file up to the next tensor."""
        ends = [len(self.header)]
        for tensor in self.tensors:
            ends.append(ends[-1] + -(-tensor.nbytes // self.alignment) * self.alignment)
        return ends

    @property
    def identity(self) -> SourceIdentity:
        return SourceIdentity("made", (self.name,), self._ends[-1])

    def has_changed(self) -> bool:
        return False

    def refuse_changed(self) -> None:
        pass

    def close(self) -> None:
        pass

    def read(self, pieces: Sequence[Piece], scratch: Bytes | None = None) -> None:
        del scratch
        for piece in pieces:
            done = 0
            while done < len(piece.target):
                done += self._fill(piece.target[done:], piece.offset + done)

    def _fill(self, target: Bytes, offset: int) -> int:
        """Fill the beginning of a target, and return how much of it."""
        number = bisect_right(self._ends, offset) - 1
        if number < 0:
            content, begin = np.frombuffer(self.header, np.uint8), 0
        else:
            tensor, begin = self.tensors[number], self._ends[number]
            if offset - begin >= tensor.nbytes:
                content = np.zeros(self._ends[number + 1] - begin - tensor.nbytes, np.uint8)
                begin += tensor.nbytes
            else:
                unit_bytes = tensor.nbytes // tensor.num_units
                unit = (offset - begin) // unit_bytes
                content, begin = self._unit(number, unit), begin + unit * unit_bytes
        count = min(len(target), begin + len(content) - offset)
        target[:count] = content[offset - begin : offset - begin + count]
        return count

    def _unit(self, number: int, unit: int) -> Bytes:
        key = number, unit
        with self._lock:
            if key not in self._units:
                self._units[key] = self.tensors[number].make(unit)
                if len(self._units) > MOST_KEPT:
                    self._units.popitem(last=False)
            return self._units[key]


def safetensors_file(name: str, tensors: Sequence[MadeTensor]) -> MadeFile:
    """Return a file of safetensors."""
    entries, end = {}, 0
    for tensor in tensors:
        offsets = [end, end + tensor.nbytes]
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets}
        end = offsets[1]
    header = json.dumps(entries).encode()
    return MadeFile(name, len(header).to_bytes(8, "little") + header, tensors)


@dataclass(frozen=True)
class MadeFolder:
    """Made files beside the small files of a folder on a disk; see ``SourceFolder``."""

    local: LocalFolder
    files: Mapping[FileName, MadeFile]

    @property
    def name(self) -> str:
        return self.local.name

    @property
    def short_name(self) -> str:
        return self.local.short_name

    def names(self) -> Collection[FileName]:
        return [*self.local.names(), *self.files]

    def source(self, name: FileName, *, is_own: bool = False) -> Source:
        return self.files.get(name) or self.local.source(name, is_own=is_own)

    def folder(self, name: FileName) -> SourceFolder:
        return self.local.folder(name)

    def local_copy(self, _: Collection[str], through: SourceFolder | None = None) -> Path:
        del through
        return self.local.path
