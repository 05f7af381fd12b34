"""Waiting for the statistics of a control group."""

from __future__ import annotations

import pytest

from server.memory.budget import COUNTER_SECONDS, wait_for_counters
from server.memory.control_group import MemoryLimit

MIB = 1 << 20


def seconds_waited(used: list[int]) -> float:
    """Wait for a group of 1,000 MiB that has so many in use at each read; 500 are the process' own."""
    left, naps = iter(used), []
    last = used[-1]
    wait_for_counters(lambda: MemoryLimit(1000 * MIB, next(left, last) * MIB), lambda: 500 * MIB, naps.append)
    return sum(naps)


def test_own_memory_is_not_waited_for() -> None:
    assert seconds_waited([540]) == 0


def test_page_cache_is_waited_for_until_it_is_counted_as_such() -> None:
    assert 0 < seconds_waited([800, 800, 520]) < COUNTER_SECONDS


def test_waiting_for_memory_of_other_processes_ends() -> None:
    assert seconds_waited([800]) == pytest.approx(COUNTER_SECONDS)


def test_without_a_limit_there_is_no_waiting() -> None:
    naps: list[float] = []
    wait_for_counters(lambda: None, lambda: 0, naps.append)
    assert not naps
