"""Samples of the bytes that a process reads from the disk."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Self

import psutil

SAMPLE_SECONDS = 0.05


@dataclass(frozen=True)
class Reads:
    """Bytes that a process read, and its use of the disk and of processors."""

    nbytes: int
    reading_seconds: float  # from the first to the last sample in which bytes were read
    cores: float  # processor seconds a second

    def disk_share(self, disk_bytes_per_second: float) -> float | None:
        """Return the part of a disk's rate that was reached while it was read; None if nothing was read."""
        if not self.nbytes or not self.reading_seconds:
            return None
        return self.nbytes / self.reading_seconds / disk_bytes_per_second


class ReadSampler:
    """Context manager that samples the bytes which a process reads from the disk."""

    def __init__(self, process: psutil.Process):
        self._process, self._ended = process, threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._samples = [self._now()]
        self._cpu_seconds = self._cpu()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def bytes_since(self, moment: float) -> int:
        """Return the bytes that were read after a moment of ``time.perf_counter``, until now."""
        before = [nbytes for time_, nbytes in self._samples if time_ <= moment]
        return self._now()[1] - (before[-1] if before else self._samples[0][1])

    def reads(self) -> Reads:
        """Return what was read until now."""
        samples = [*self._samples, self._now()]
        (started, before), (ended, after) = samples[0], samples[-1]
        grown = [index for index in range(1, len(samples)) if samples[index][1] > samples[index - 1][1]]
        reading = samples[grown[-1]][0] - samples[grown[0] - 1][0] if grown else 0.0
        return Reads(after - before, reading, (self._cpu() - self._cpu_seconds) / (ended - started))

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            try:
                self._samples.append(self._now())
            except psutil.NoSuchProcess:
                return  # the request's error tells of it

    def _now(self) -> tuple[float, int]:
        return time.perf_counter(), self._process.io_counters().read_bytes

    def _cpu(self) -> float:
        times = self._process.cpu_times()
        return times.user + times.system
