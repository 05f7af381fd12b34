"""Samples of a server's memory use over time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Self

import httpx
import psutil

from benchmarks.memory_use.server import Usage

SAMPLE_SECONDS = 5.0
NUM_PARTS = 3


class UsageSampler:
    """Samples a server's memory use every few seconds in a thread, until the server ends."""

    def __init__(self, usage: Callable[[], Usage], sample_seconds: float = SAMPLE_SECONDS):
        self._usage, self._sample_seconds, self._ended = usage, sample_seconds, threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self.samples: list[tuple[float, Usage]] = []  # seconds since the start

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        start = time.monotonic()
        while not self._ended.wait(self._sample_seconds):
            try:
                self.samples.append((time.monotonic() - start, self._usage()))
            except (OSError, httpx.TransportError, psutil.NoSuchProcess):
                return  # the server has ended; its entry reports this


def max_by_thirds(samples: Sequence[tuple[float, Usage]]) -> dict[str, list[int | None]]:
    """Return the maximum bytes of each third of the time: anonymous, and without trunk, experts and KV cache.

    Thirds without samples, and values that a server does not report, are None.
    """
    end = max((seconds for seconds, _ in samples), default=0.0)
    thirds: list[list[Usage]] = [[] for _ in range(NUM_PARTS)]
    for seconds, usage in samples:
        thirds[min(NUM_PARTS - 1, int(NUM_PARTS * seconds / end))].append(usage)
    return {
        "anonymous_bytes": [max((usage.anonymous_bytes for usage in third), default=None) for third in thirds],
        "other_bytes": [
            max((usage.other_bytes for usage in third if usage.other_bytes is not None), default=None)
            for third in thirds
        ],
    }
