"""The memory that the process and its children may use: ``--memory`` in bytes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from server.byte_sizes import format_bytes
from server.memory.control_group import MemoryLimit, memory_limit
from server.memory.machine import available_bytes, own_bytes, total_bytes
from server.settings import ServeSettings

log = logging.getLogger(__name__)

# Shares that `auto` leaves free. A control group is for this process alone, but its counter runs ahead of the memory in
# use; on a machine, other processes start and grow.
GROUP_MARGIN, LEAST_GROUP_MARGIN = 0.01, 8 << 20
MACHINE_MARGIN, LEAST_MACHINE_MARGIN = 0.03, 256 << 20

COUNTER_SECONDS, COUNTER_READS = 2.5, 10
UNEXPLAINED = 0.05  # share of a group's limit that its other processes, the kernel and libraries may use


def host_budget(settings: ServeSettings) -> int:
    """Return the budget of host memory in bytes.

    ``auto`` is the memory that the process uses now plus what the machine or its tightest control group has available,
    less a margin. A size larger than all of that is lowered to ``auto``.
    """
    own, left = own_bytes(), available_bytes()
    limit, total = memory_limit(), total_bytes()
    is_group_limit = limit is not None and limit.free_bytes <= left
    share, least = (GROUP_MARGIN, LEAST_GROUP_MARGIN) if is_group_limit else (MACHINE_MARGIN, LEAST_MACHINE_MARGIN)
    auto = own + max(0, left - max(least, int(share * total)))
    asked = asked_bytes(settings, auto)
    return auto if asked > own + left else asked


def wait_for_counters(
    read: Callable[[], MemoryLimit | None] = memory_limit,
    own: Callable[[], int] = own_bytes,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait until a control group's statistics count files that were just read as page cache.

    The kernel updates the statistics every two seconds. Until then, the page cache seems to be memory in use. Returns
    at once if no group limits the memory, or if nearly all memory in use is the process' own.
    """
    for _ in range(COUNTER_READS):
        limit = read()
        if limit is None or limit.used_bytes - own() <= UNEXPLAINED * limit.limit_bytes:
            return
        sleep(COUNTER_SECONDS / COUNTER_READS)


def asked_bytes(settings: ServeSettings, auto: int) -> int:
    """Return the bytes that ``--memory`` asks for, even if they exceed the memory that exists."""
    return settings.memory.resolve(total_bytes(), auto)


def warn_if_lowered(settings: ServeSettings, budget_bytes: int) -> None:
    """Log a warning if the budget is less than ``--memory`` asks for."""
    if asked_bytes(settings, budget_bytes) > budget_bytes:
        size = format_bytes(budget_bytes)
        log.warning("--memory %s is more than is available; the server uses at most %s", settings.memory, size)
