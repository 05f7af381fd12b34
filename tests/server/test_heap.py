"""Freed memory is returned to the system."""

from __future__ import annotations

import threading

from server.heap import HeapTrimmer


def test_simultaneous_calls_trim_once() -> None:
    trims, is_trimmed = [], threading.Event()

    def trim() -> None:
        trims.append(1)
        is_trimmed.set()

    trimmer = HeapTrimmer(trim, delay_seconds=0.05)
    for _ in range(3):
        trimmer.soon()
    assert is_trimmed.wait(10)
    is_trimmed.clear()
    trimmer.soon()
    assert is_trimmed.wait(10)
    assert len(trims) == 2
