"""All that the process and its children may take: ``--memory`` in bytes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from server.settings import ServeSettings, parse_budget

from .control_group import MemoryLimit, memory_limit
from .machine import available_bytes, own_bytes, total_bytes
from .sizes import format_bytes

log = logging.getLogger(__name__)

# Left by `auto`. A group's counter runs ahead of what is taken, and a group is for this process alone; on a machine,
# others start and grow.
GROUP_MARGIN, LEAST_GROUP_MARGIN = 0.01, 8 << 20
MACHINE_MARGIN, LEAST_MACHINE_MARGIN = 0.03, 256 << 20

COUNTER_SECONDS, COUNTER_LOOKS = 2.5, 10
UNEXPLAINED = 0.05  # of a group's limit, that its other processes, the kernel and libraries may take


def host_budget(settings: ServeSettings) -> int:
    """Bytes of the host's memory.

    ``auto`` is what the process takes and what the machine or its tightest control group leaves it, less a margin. It
    counts, too, where a size is asked for that is more than there is.
    """
    own, left = own_bytes(), available_bytes()
    limit, total = memory_limit(), total_bytes()
    is_of_group = limit is not None and limit.free_bytes <= left
    share, least = (GROUP_MARGIN, LEAST_GROUP_MARGIN) if is_of_group else (MACHINE_MARGIN, LEAST_MACHINE_MARGIN)
    auto = own + max(0, left - max(least, int(share * total)))
    asked = asked_bytes(settings, auto)
    return auto if asked > own + left else asked


def wait_for_counters(
    read: Callable[[], MemoryLimit | None] = memory_limit,
    own: Callable[[], int] = own_bytes,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait, after files were read, until a control group's statistics count them as page cache.

    The kernel brings the statistics up to date every two seconds. Until then, the page cache seems to be memory in use.
    Returns at once where no group limits the memory, or nearly all that is in use is the process' own.
    """
    for _ in range(COUNTER_LOOKS):
        limit = read()
        if limit is None or limit.used_bytes - own() <= UNEXPLAINED * limit.limit_bytes:
            return
        sleep(COUNTER_SECONDS / COUNTER_LOOKS)


def asked_bytes(settings: ServeSettings, auto: int) -> int:
    """Bytes that ``--memory`` asks for, whether there are as many or not."""
    return parse_budget(settings.memory).resolve(total_bytes(), auto)


def warn_if_lowered(settings: ServeSettings, budget_bytes: int) -> None:
    """Log a warning where the budget is less than what was asked for."""
    if asked_bytes(settings, budget_bytes) > budget_bytes:
        size = format_bytes(budget_bytes)
        log.warning("--memory %s is more than there is; the server takes %s at most", settings.memory, size)
