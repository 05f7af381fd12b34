"""Measures the memory that machine and control groups leave to this process, and what it takes itself."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil

from .control_group import memory_limit

PROCESSES = Path("/proc")
CHILDREN_SECONDS = 5.0  # for which the list of children is kept
TAKEN = ("RssAnon", "RssShmem", "VmPTE", "VmSwap")  # KiB each; pages of files can be dropped at any time


def available_bytes() -> int:
    """Memory that this process may still take: the machine's, or what its control group leaves if that is less."""
    available = int(psutil.virtual_memory().available)
    limit = memory_limit()
    return available if limit is None else min(available, limit.free_bytes)


def total_bytes() -> int:
    """Memory of the machine, or the tightest limit of a control group of this process."""
    total = int(psutil.virtual_memory().total)
    limit = memory_limit()
    return total if limit is None else min(total, limit.limit_bytes)


def own_bytes() -> int:
    """Memory that this process and its children take; pages of files are not counted."""
    taken = 0
    for pid in _own_pids():
        try:
            lines = (PROCESSES / str(pid) / "status").read_text().splitlines()
        except OSError:  # it ended meanwhile
            continue
        fields = dict(line.split(":", 1) for line in lines)
        taken += sum(int(fields[name].split()[0]) << 10 for name in TAKEN if name in fields)
    return taken


_pids_at: tuple[float, list[int]] = (float("-inf"), [])  # when they were listed, and the ids


def _own_pids() -> list[int]:
    """Ids of the process and its children, which are found by looking at every process of the machine."""
    global _pids_at  # noqa: PLW0603
    read_at, pids = _pids_at
    if not pids or pids[0] != os.getpid() or time.monotonic() - read_at > CHILDREN_SECONDS:
        own = psutil.Process()
        pids = [own.pid, *(child.pid for child in own.children(recursive=True))]
        _pids_at = time.monotonic(), pids
    return pids
