"""The disk tier: threads that read experts straight into slots."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from .arena import Arena, bytes_of
from .catalog import ExpertRecipe, PackedRecord, TensorSource
from .errors import ShortReadError

MAX_READ_BYTES = 1 << 30  # a read call moves less than 2 GiB
Done = Callable[[Exception | None], None]


class DiskReader:
    """A pool of threads that sleep in the kernel while they read.

    ``submit`` returns at once; ``done(None)`` or ``done(error)`` is called from a reader thread when the slot is
    filled, or could not be. Safe to call from any thread.

    Raises:
        OSError: a file can't be opened.
    """

    def __init__(self, paths: Sequence[Path], num_threads: int):
        self._files: dict[Path, int] = {}
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"expert-reader-{index}", daemon=True)
            for index in range(num_threads)
        ]
        try:
            for path in paths:
                self._files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._close_files()
            raise
        for thread in self._threads:
            thread.start()

    def submit(self, recipe: ExpertRecipe, arena: Arena, slot: int, done: Done) -> None:
        self._jobs.put(lambda: self._load(recipe, arena, slot, done))

    def close(self) -> None:
        """Finish what was submitted, then stop the threads and close the files."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._close_files()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _load(self, recipe: ExpertRecipe, arena: Arena, slot: int, done: Done) -> None:
        try:
            if isinstance(recipe, PackedRecord):
                raise NotImplementedError("packed records")  # noqa: TRY301
            for parameter in arena.layout.parameters:
                part = recipe[parameter.name]
                if part.assemble is None:
                    buffer, offset = arena.buffer(slot, parameter.name), 0
                    for source in part.sources:
                        file = self._files[source.extent.path]
                        _read_fully(file, source, buffer[offset : offset + source.extent.nbytes])
                        offset += source.extent.nbytes
                else:
                    tensors = [_read_tensor(self._files[source.extent.path], source) for source in part.sources]
                    arena.weights(slot)[parameter.name].copy_(part.assemble(tensors))
        except Exception as error:  # noqa: BLE001  whatever it is, those who wait must hear of it
            done(error)
        else:
            done(None)

    def _close_files(self) -> None:
        for file in self._files.values():
            with suppress(OSError):
                os.close(file)
        self._files.clear()


def read_tensor(source: TensorSource) -> torch.Tensor:
    """One tensor of a checkpoint, in memory of its own.

    Raises:
        OSError: the file can't be read.
        ShortReadError: it ends too early.
    """
    file = os.open(source.extent.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _read_tensor(file, source)
    finally:
        os.close(file)


def _read_tensor(file: int, source: TensorSource) -> torch.Tensor:
    raw = torch.empty(source.extent.nbytes, dtype=torch.uint8)
    _read_fully(file, source, bytes_of(raw))
    return raw.view(source.dtype).view(source.shape)


def _read_fully(file: int, source: TensorSource, buffer: memoryview) -> None:
    position = source.extent.offset
    while buffer:
        count = os.preadv(file, [buffer[:MAX_READ_BYTES]], position)
        if count == 0:
            raise ShortReadError(f"{source.extent.path} ends inside {source.name}; it was cut short or replaced")
        buffer, position = buffer[count:], position + count
