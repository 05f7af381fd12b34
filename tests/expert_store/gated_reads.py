"""Reads that block until a test lets them go on."""

from __future__ import annotations

import os
import threading

import pytest


class GatedReads:
    """Blocks every read of data until ``is_open`` is set, and counts them; headers are read as usual."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: OSError | None = None):
        self.count = 0
        self.error = error
        self.is_open = threading.Event()
        self._started = threading.Semaphore(0)
        self._read = os.preadv
        monkeypatch.setattr(os, "preadv", self)

    def wait_until_started(self) -> None:
        assert self._started.acquire(timeout=30)

    def __call__(self, file: int, buffers: list[memoryview], offset: int) -> int:
        self.count += 1
        self._started.release()
        assert self.is_open.wait(timeout=30)
        if self.error is not None:
            raise self.error
        return self._read(file, buffers, offset)
