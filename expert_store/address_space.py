"""Addresses that the limits of a process leave it."""

from __future__ import annotations

import os
import resource
from pathlib import Path

USE = Path("/proc/self/statm")
TOTAL, DATA = 0, 5  # places of numbers of pages there: all addresses, and those of data and stack


def spare_address_bytes() -> int | None:
    """Return how many bytes of addresses can still be reserved; None without a limit (``ulimit -v``, ``ulimit -d``)."""
    limits = {
        place: resource.getrlimit(kind)[0]
        for kind, place in ((resource.RLIMIT_AS, TOTAL), (resource.RLIMIT_DATA, DATA))
    }
    if all(limit == resource.RLIM_INFINITY for limit in limits.values()) or not USE.exists():
        return None
    used = USE.read_text("ascii").split()
    spare = [
        limit - int(used[place]) * os.sysconf("SC_PAGE_SIZE")
        for place, limit in limits.items()
        if limit != resource.RLIM_INFINITY
    ]
    return max(0, min(spare))
