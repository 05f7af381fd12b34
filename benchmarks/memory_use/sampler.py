"""Memory of a server over time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Self

import httpx
import psutil

from .server import Usage

SAMPLE_SECONDS = 5.0
NUM_PARTS = 3


class Sampler:
    """Notes a server's use of memory every few seconds, in a thread of its own, until the server ends."""

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
                return  # the server has ended, which its entry tells


def by_thirds(samples: Sequence[tuple[float, Usage]]) -> dict[str, list[int | None]]:
    """The most bytes of each third of the time: anonymous, and beside trunk, experts and KV cache.

    A third without a sample has None, and so has what a server does not tell.
    """
    end = max((seconds for seconds, _ in samples), default=0.0)
    thirds: list[list[Usage]] = [[] for _ in range(NUM_PARTS)]
    for seconds, usage in samples:
        thirds[min(NUM_PARTS - 1, int(NUM_PARTS * seconds / end))].append(usage)
    return {
        "anonymous_bytes": [max((usage.anonymous_bytes for usage in third), default=None) for third in thirds],
        "beside_bytes": [
            max((usage.beside_bytes for usage in third if usage.beside_bytes is not None), default=None)
            for third in thirds
        ],
    }
