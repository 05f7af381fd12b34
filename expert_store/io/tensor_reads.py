"""Reads of tensors into memory of their own: one at a time, or many in parallel."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import torch

from expert_store.arena import page_aligned
from expert_store.catalog import TensorSource
from expert_store.errors import SourceError, StoreFailedError
from expert_store.io.reader import Done, Part, Priority, SourceReader
from expert_store.sources.base import Bytes, Piece
from expert_store.sources.open_sources import OpenSources
from expert_store.sources.parallel import are_files

NUM_READERS = 6  # as in a store
NUM_REMOTE_READERS = 12  # where each read goes to a server and back, which a link waits for less if there are more
HUGE_BYTES = 2 << 20  # tensors of a huge page or more are on huge pages if possible, from which products read faster
PART_BYTES = 4 << 20  # larger tensors are read in parts, by several threads
SMALL_BYTES = 256 << 10  # of a file; smaller tensors are read together, up to a part; of a server all that are no part
REFILL_BYTES = 8 << 20  # taken before more is begun, so that small tensors are begun together
AHEAD_BYTES = 32 << 20  # of tensors that are read before they are taken; enough to keep all threads busy
REMOTE_AHEAD_BYTES = 64 << 20  # the same, with more threads
MOST_SPARE = 2  # times the bytes of a tensor, that memory which it reuses has


def read_tensor(source: TensorSource) -> torch.Tensor:
    """Read one tensor of a checkpoint into memory of its own, and drop its bytes from the page cache.

    Raises:
        SourceError: its source can't be read, or ends too early.
    """
    target = np.empty(source.extent.nbytes, dtype=np.uint8)
    try:
        with closing(source.extent.source.open(is_direct=False)) as opened:
            opened.read([Piece(source.extent.offset, target)])
    except SourceError as error:
        raise error.naming(source.extent.source.name, source.name) from error
    return as_tensor(target, source)


def empty_tensor(dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
    """Return a tensor that is to be filled, on huge pages if it fills one and they are possible."""
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < HUGE_BYTES:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(page_aligned(nbytes)).view(dtype).view(shape)  # type: ignore[no-untyped-call,unused-ignore]


def as_tensor(raw: Bytes, source: TensorSource) -> torch.Tensor:
    """Return the tensor that some bytes are."""
    if not len(raw):  # torch can't view it as another type
        return torch.empty(source.shape, dtype=source.dtype)
    return torch.from_numpy(raw).view(source.dtype).view(source.shape)  # type: ignore[no-untyped-call,unused-ignore]


class TensorReads:
    """Reads tensors in parallel, at the speed of the disk, a little ahead of those who take them.

    A context manager, for one thread, but for ``reuse``. Each tensor has memory of its own, and none is copied.

    Args:
        sources: all tensors, in the order in which they will be taken.

    Raises:
        SourceError: a source can't be opened.
        BudgetError: there is no memory to read with.
    """

    def __init__(self, sources: Sequence[TensorSource], num_readers: int | None = None):
        is_near = are_files(source.extent.source for source in sources)
        self._small_bytes = SMALL_BYTES if is_near else PART_BYTES
        self._max_ahead_bytes = AHEAD_BYTES if is_near else REMOTE_AHEAD_BYTES
        self._left = deque(sources)  # not begun
        self._begun: deque[_TensorRead] = deque()
        self._ahead_bytes = 0  # of those that are begun
        self._changed = threading.Condition()  # guards the progress of each read, and the next field
        self._failure: str | None = None
        self._spare: list[Bytes] = []  # memory of tensors that nobody needs; changed by single calls alone
        self._open = OpenSources({source.extent.source for source in sources})
        try:
            self._reader = SourceReader(num_readers or (NUM_READERS if is_near else NUM_REMOTE_READERS), self._fail)
        except Exception:
            self._open.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._reader.close()
        self._open.close()

    def take(self, source: TensorSource) -> torch.Tensor:
        """Return the next tensor, as soon as it is read.

        Raises:
            SourceError: its source can't be read, or ends too early.
            StoreFailedError: a thread that reads died.
            ValueError: another tensor is the next.
        """
        self._read_ahead()
        read = self._begun.popleft() if self._begun else None
        if read is None or read.source != source:
            raise ValueError(f"{source.name} is not the tensor to be taken next")
        with self._changed:
            while read.num_left and read.error is None:
                if self._failure is not None:
                    raise StoreFailedError(self._failure)
                self._changed.wait()
        if isinstance(read.error, SourceError):
            raise read.error.naming(source.extent.source.name, source.name) from read.error
        if read.error is not None:
            raise read.error
        self._ahead_bytes -= source.extent.nbytes
        self._read_ahead()
        return as_tensor(read.target, source)

    def reuse(self, tensor: torch.Tensor) -> None:
        """Give later tensors the memory of one that was taken, which nobody may use any more; any thread may call it.

        Memory that is new to the process costs the system as much as a copy: it is cleared first.
        """
        if tensor.nbytes >= HUGE_BYTES:
            self._spare.append(tensor.flatten().view(torch.uint8).numpy())

    def _memory(self, nbytes: int) -> Bytes:
        if nbytes < HUGE_BYTES:
            return np.empty(nbytes, dtype=np.uint8)
        for index, spare in enumerate(self._spare):
            if nbytes <= len(spare) <= MOST_SPARE * nbytes:
                return self._spare.pop(index)[:nbytes]
        return page_aligned(nbytes)

    def _read_ahead(self) -> None:
        if self._begun and self._ahead_bytes > self._max_ahead_bytes - REFILL_BYTES:
            return
        small: list[_TensorRead] = []
        while self._left and (not self._begun or self._ahead_bytes < self._max_ahead_bytes):
            source = self._left.popleft()
            read = _TensorRead(source, self._memory(source.extent.nbytes))
            self._begun.append(read)
            self._ahead_bytes += read.source.extent.nbytes
            if len(read.target) < self._small_bytes:
                read.num_left = 1
                small = self._group(small, read)
                continue
            pieces = list(_parts(read))
            read.num_left = len(pieces)
            for piece in pieces:
                self._submit([read], [piece])
        self._submit_small(small)

    def _group(self, small: list[_TensorRead], read: _TensorRead) -> list[_TensorRead]:
        """Return small tensors that are to be read together, after those that are enough for one read."""
        source, nbytes = read.source.extent.source, sum(len(each.target) for each in [*small, read])
        if small and (small[0].source.extent.source != source or nbytes > PART_BYTES):
            self._submit_small(small)
            small = []
        return [*small, read]

    def _submit_small(self, reads: list[_TensorRead]) -> None:
        if reads:
            self._submit(reads, [Piece(read.source.extent.offset, read.target) for read in reads])

    def _submit(self, reads: list[_TensorRead], pieces: list[Piece]) -> None:
        def done(error: Exception | None) -> None:
            with self._changed:
                for read in reads:
                    read.num_left -= 1
                    read.error = read.error or error
                self._changed.notify_all()

        self._reader.submit(_PartRead(reads[0].source, pieces, self._open, done))

    def _fail(self, reason: str) -> None:
        with self._changed:
            self._failure = reason
            self._changed.notify_all()


@dataclass(eq=False)
class _TensorRead:
    """A tensor that is being read; ``num_left`` parts of it are missing."""

    source: TensorSource
    target: Bytes
    num_left: int = 0
    error: Exception | None = None


@dataclass(eq=False)
class _PartRead:
    """A part of a tensor, or some small ones, to be read, as a ``ReadJob``."""

    source: TensorSource
    pieces: list[Piece]
    sources: OpenSources
    done: Done
    priority: Priority = Priority.DEMAND

    def __str__(self) -> str:
        return self.source.name

    def parts(self) -> list[Part]:
        return [self._read]

    def _read(self, scratch: Bytes) -> None:
        self.sources[self.source.extent.source].read(self.pieces, scratch)


def _parts(read: _TensorRead) -> Iterator[Piece]:
    """Yield the parts of a tensor, cut where pages of its source end."""
    begin, end = read.source.extent.offset, read.source.extent.offset + read.source.extent.nbytes
    position = begin
    while position < end:
        following = min(end, (position // PART_BYTES + 1) * PART_BYTES)
        yield Piece(position, read.target[position - begin : following - begin])
        position = following
