"""The number of replicas, decided by the requests that wait and by the time that compute waits for experts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

WAITING_EACH = 4.0  # waiting requests of a replica from which on another one is worth its start
STALLED = 0.5  # share of decode time from which on more replicas help: each then has fewer kinds of requests
IDLE_EACH = 1.0  # running requests of the remaining replicas below which one of them is stopped
WARM_UP_SECONDS = 120.0  # in which a new replica reads its experts: it stalls, and that says nothing of the load


class Load(NamedTuple):
    """Load of a replica, as it tells."""

    num_running: float
    num_waiting: float
    stall_share: float


def wish(loads: Mapping[str, Load], warm: frozenset[str]) -> int:
    """Return 1 for one more replica or more, -1 for one less, 0 for neither.

    Args:
        warm: replicas that have run for a while; the stalls of others do not count.
    """
    if not loads:
        return 0
    waiting = sum(load.num_waiting for load in loads.values()) / len(loads)
    stalls = [load.stall_share for name, load in loads.items() if name in warm]
    is_stalled = bool(stalls) and min(stalls) > STALLED and any(load.num_running > 1 for load in loads.values())
    if waiting > WAITING_EACH or is_stalled:
        return 1
    running = sum(load.num_running + load.num_waiting for load in loads.values())
    return -1 if running < IDLE_EACH * (len(loads) - 1) else 0


def decide(context: Any) -> tuple[int, dict[str, Any]]:
    """Return the number of replicas wished for, and what to remember until the next call, as Serve asks a policy.

    Serve follows a wish that lasts for the deployment's ``upscale_delay_s`` or ``downscale_delay_s``.
    """
    now, state = float(context.current_time), dict(context.policy_state or {})
    names = [replica.unique_id for replica in context.running_replicas]
    since = {name: state.get("since", {}).get(name, now) for name in names}
    target = context.target_num_replicas
    if len(names) >= target:  # else one starts
        warm = frozenset(name for name in names if now - since[name] >= WARM_UP_SECONDS)
        loads = {name: load for name, load in loads_of(context.aggregated_metrics or {}).items() if name in since}
        direction = wish(loads, warm)
        target += direction and _step(direction, loads)
    least, most = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
    return max(least, min(target, most)), {"since": since}


def loads_of(metrics: Mapping[str, Mapping[Any, float]]) -> dict[str, Load]:
    """Return the load of each replica from the metrics that they record, by name and replica."""
    columns = {
        name: {replica.unique_id: value for replica, value in metrics.get(name, {}).items()} for name in Load._fields
    }
    return {name: Load(*(columns[field].get(name, 0.0) for field in Load._fields)) for name in columns["num_running"]}


def _step(direction: int, loads: Mapping[str, Load]) -> int:
    """Return how many replicas to add or to stop: with a long queue, as many as the waiting requests need."""
    waiting = sum(load.num_waiting for load in loads.values())
    needed = math.ceil(waiting / (4 * WAITING_EACH))
    return direction if direction < 0 else max(1, min(needed, len(loads)))
