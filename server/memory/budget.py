"""All that the process and its children may take: ``--memory`` in bytes."""

from __future__ import annotations

import logging

from server.settings import ServeSettings, parse_budget

from .control_group import memory_limit
from .machine import available_bytes, own_bytes, total_bytes
from .sizes import format_bytes

log = logging.getLogger(__name__)

# Left by `auto`. A group's counter runs ahead of what is taken, and a group is for this process alone; on a machine,
# others start and grow.
GROUP_MARGIN, LEAST_GROUP_MARGIN = 0.01, 8 << 20
MACHINE_MARGIN, LEAST_MACHINE_MARGIN = 0.03, 256 << 20


def host_budget(settings: ServeSettings) -> int:
    """Bytes of the host's memory.

    ``auto`` is what the process takes and what the machine or its tightest control group leaves it, less a margin. A
    size that is more than there is is lowered to that, with a warning.
    """
    own, left = own_bytes(), available_bytes()
    limit, total = memory_limit(), total_bytes()
    is_of_group = limit is not None and limit.free_bytes <= left
    share, least = (GROUP_MARGIN, LEAST_GROUP_MARGIN) if is_of_group else (MACHINE_MARGIN, LEAST_MACHINE_MARGIN)
    auto = own + max(0, left - max(least, int(share * total)))
    asked = parse_budget(settings.memory).resolve(total, auto)
    if asked > own + left:
        log.warning(
            "--memory %s is more than there is; the server takes %s at most", settings.memory, format_bytes(auto)
        )
        return auto
    return asked
