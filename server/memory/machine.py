"""Measures the memory that is available to this process, and the memory that it uses."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil

from server.memory.control_group import memory_limit

PROCESSES = Path("/proc")
CHILDREN_SECONDS = 5.0  # time for which the list of child processes is cached
USED = ("RssAnon", "RssShmem", "VmPTE", "VmSwap")  # in KiB; pages of files are left out, as they can be dropped


def available_bytes() -> int:
    """Return the bytes that this process may still allocate, by the machine or its control group."""
    available = int(psutil.virtual_memory().available)
    limit = memory_limit()
    return available if limit is None else min(available, limit.free_bytes)


def total_bytes() -> int:
    """Return the bytes of the machine's memory, or the tightest limit of a control group of this process."""
    total = int(psutil.virtual_memory().total)
    limit = memory_limit()
    return total if limit is None else min(total, limit.limit_bytes)


def own_bytes() -> int:
    """Return the bytes that this process and its children use; pages of files do not count."""
    used = 0
    for pid in _own_pids():
        try:
            lines = (PROCESSES / str(pid) / "status").read_text().splitlines()
        except OSError:  # the process has ended
            continue
        fields = dict(line.split(":", 1) for line in lines)
        used += sum(int(fields[name].split()[0]) << 10 for name in USED if name in fields)
    return used


_pids_at: tuple[float, list[int]] = (float("-inf"), [])  # time of listing, and process ids


def _own_pids() -> list[int]:
    """Return the ids of the process and its children; cached, as every process of the machine is looked at."""
    global _pids_at  # noqa: PLW0603
    read_at, pids = _pids_at
    if not pids or pids[0] != os.getpid() or time.monotonic() - read_at > CHILDREN_SECONDS:
        own = psutil.Process()
        pids = [own.pid, *(child.pid for child in own.children(recursive=True))]
        _pids_at = time.monotonic(), pids
    return pids
