"""Threads that read experts from disk straight into slots."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xxhash

from expert_store.arena import Bytes, HostArena
from expert_store.catalog import ExpertRecipe, PackedRecord, ParameterRecipe, TensorSource, checksum_seed
from expert_store.errors import BudgetError, CheckpointError, ChecksumError, ShortReadError, StoreClosedError
from expert_store.io.direct_io import Piece, bounce_buffer, read_fully
from expert_store.io.open_files import OpenFiles
from expert_store.io.read_watch import ReadWatch
from expert_store.keys import ExpertKey

log = logging.getLogger(__name__)

Done = Callable[[Exception | None], None]


@dataclass(eq=False)
class ReadJob:
    """One expert to be read into one slot; ``str`` gives its name."""

    key: ExpertKey
    recipe: ExpertRecipe
    files: OpenFiles
    arena: HostArena
    slot: int
    done: Done
    is_prefetch: bool = False

    def __str__(self) -> str:
        return str(self.key)


class DiskReader:
    """A pool of threads that sleep in the kernel while they read. Safe to call from any thread.

    ``submit`` returns at once. A reader thread calls ``job.done(None)`` when the slot is filled, or ``job.done(error)``
    when it could not be. Demands always go before prefetches, and prefetches never take the last thread.

    Args:
        on_death: called with the reason if a thread dies.
        open_files: returns the files to watch for changes.

    Raises:
        BudgetError: there is no memory to read with.
    """

    def __init__(
        self, num_threads: int, on_death: Callable[[str], None], open_files: Callable[[], Iterable[OpenFiles]] = tuple
    ):
        self._demands: deque[ReadJob] = deque()
        self._prefetches: deque[ReadJob] = deque()
        self._num_prefetching = 0
        self._is_closing = False
        self._changed = threading.Condition()  # guards the fields above; taken inside the store's lock
        self._on_death = on_death
        self._threads = [
            threading.Thread(target=self._work, args=(bounce,), name=f"expert-reader-{index}", daemon=True)
            for index, bounce in enumerate(_bounce_buffers(num_threads))
        ]
        self._max_prefetching = max(1, num_threads - 1)
        self._watch = ReadWatch(num_threads, open_files)
        for thread in self._threads:
            thread.start()

    @property
    def takes_prefetches(self) -> bool:
        """True if a prefetch submitted now would find the disk idle, or soon."""
        with self._changed:
            return not self._demands and len(self._prefetches) + self._num_prefetching < len(self._threads)

    @property
    def has_stuck_read(self) -> bool:
        """True while a read does not return."""
        return self._watch.has_stuck_read

    @property
    def changed_files(self) -> frozenset[Path]:
        """The files that were written to since they were opened."""
        return self._watch.changed

    def is_stuck(self, job: ReadJob) -> bool:
        """Return True if a read does not return, or can't begin because no other does."""
        return self._watch.is_stuck(job)

    def submit(self, job: ReadJob) -> None:
        """Queue a read and return at once."""
        with self._changed:
            (self._prefetches if job.is_prefetch else self._demands).append(job)
            self._changed.notify()

    def promote(self, job: ReadJob) -> None:
        """Turn a prefetch that has not begun into a demand, as a lease waits for it."""
        with self._changed:
            if job in self._prefetches:
                self._prefetches.remove(job)
                job.is_prefetch = False
                self._demands.append(job)
                self._changed.notify()

    def cancel(self, job: ReadJob) -> bool:
        """Remove a job that has not begun, without a call of its ``done``; False if it has begun."""
        with self._changed:
            for jobs in (self._demands, self._prefetches):
                if job in jobs:
                    jobs.remove(job)
                    return True
            return False

    def close(self) -> None:
        """Finish the reads that have begun, fail the others and stop the threads."""
        with self._changed:
            self._is_closing = True
            left = [*self._demands, *self._prefetches]
            self._demands.clear()
            self._prefetches.clear()
            self._changed.notify_all()
        for job in left:
            job.done(StoreClosedError("the expert store was closed"))
        for thread in self._threads:
            thread.join()
        self._watch.close()

    def _work(self, bounce: Bytes) -> None:
        try:
            self._read_all(bounce)
        except BaseException as error:
            log.critical("a thread that reads experts died", exc_info=error)
            self._on_death(f"a thread that reads experts died ({error!r})")

    def _read_all(self, bounce: Bytes) -> None:
        torch.set_num_threads(1)  # for the assembly of parameters; more would compete with compute
        while (job := self._next()) is not None:
            error: Exception | None = None
            try:
                with job.files.reading(), self._watch.running(job):
                    _read_expert(job, bounce)
            except Exception as caught:  # noqa: BLE001  every error has to reach the leases that wait
                error = caught
            if job.is_prefetch:
                with self._changed:
                    self._num_prefetching -= 1
                    self._changed.notify()
            job.done(error)

    def _next(self) -> ReadJob | None:
        with self._changed:
            while True:
                if self._demands:
                    return self._demands.popleft()
                if self._prefetches and self._num_prefetching < self._max_prefetching:
                    self._num_prefetching += 1
                    return self._prefetches.popleft()
                if self._is_closing:
                    return None
                self._changed.wait()


def read_tensor(source: TensorSource) -> torch.Tensor:
    """Read one tensor of a checkpoint into memory of its own, and drop its bytes from the page cache.

    Raises:
        CheckpointError: the file can't be read.
        ShortReadError: the file ends too early.
    """
    target = np.empty(source.extent.nbytes, dtype=np.uint8)
    try:
        with source.extent.path.open("rb", buffering=0) as file:
            count = read_fully(file.fileno(), target, source.extent.offset)
            with suppress(OSError):  # a hint
                os.posix_fadvise(file.fileno(), source.extent.offset, len(target), os.POSIX_FADV_DONTNEED)
    except OSError as error:
        raise CheckpointError(f"cannot read {source.name} from {source.extent.path}: {error.strerror}") from error
    if count < len(target):
        raise ShortReadError(f"{source.extent.path} ends inside {source.name}; it was cut short or replaced")
    return _as_tensor(target, source)


def _bounce_buffers(count: int) -> list[Bytes]:
    try:
        return [bounce_buffer() for _ in range(count)]
    except OSError as error:
        raise BudgetError(f"cannot allocate memory to read experts with: {error.strerror}; free some memory") from error


def _read_expert(job: ReadJob, bounce: Bytes) -> None:
    if isinstance(job.recipe, PackedRecord):
        _read_record(job, job.recipe, bounce)
    else:
        _read_parameters(job, job.recipe, bounce)


def _read_record(job: ReadJob, record: PackedRecord, bounce: Bytes) -> None:
    target = job.arena.bytes_of(job.slot)
    for _ in range(2):  # a bit flipped in transfer is right the second time, one on the disk is not
        job.files[record.extent.path].read([Piece(record.extent.offset, target)], bounce)
        found = xxhash.xxh3_64_intdigest(target.data, seed=checksum_seed(job.key))
        if found == record.checksum:
            return
    raise ChecksumError(
        f"the checksum of its record in {record.extent.path.name} is {found:016x}, not {record.checksum:016x}; "
        "the file is damaged; copy it again, or pack the model again"
    )


def _read_parameters(job: ReadJob, recipe: Mapping[str, ParameterRecipe], bounce: Bytes) -> None:
    slot, layout = job.arena.bytes_of(job.slot), job.arena.layout
    pieces: dict[Path, list[Piece]] = {}
    assembled: list[tuple[str, ParameterRecipe, list[Bytes]]] = []
    for parameter in layout.parameters:
        part, offset = recipe[parameter.name], layout.offsets[parameter.name]
        targets = []
        for source in part.sources:
            if part.assemble is None:
                target = slot[offset : offset + source.extent.nbytes]
                offset += source.extent.nbytes
            else:
                target = np.empty(source.extent.nbytes, dtype=np.uint8)
            targets.append(target)
            pieces.setdefault(source.extent.path, []).append(Piece(source.extent.offset, target))
        if part.assemble is not None:
            assembled.append((parameter.name, part, targets))
    for path, parts in pieces.items():
        job.files[path].read(parts, bounce)
        job.files[path].refuse_changed()  # unlike records, these bytes have no checksum
    for name, part, targets in assembled:
        if part.assemble is not None:
            job.arena.weights(job.slot)[name].copy_(part.assemble(list(_tensors(targets, part.sources))))


def _tensors(raw: Iterable[Bytes], sources: Iterable[TensorSource]) -> Iterable[torch.Tensor]:
    return (_as_tensor(part, source) for part, source in zip(raw, sources, strict=True))


def _as_tensor(raw: Bytes, source: TensorSource) -> torch.Tensor:
    return torch.from_numpy(raw).view(source.dtype).view(source.shape)  # type: ignore[no-untyped-call,unused-ignore]
