"""Decisions on the number of replicas."""

from types import SimpleNamespace
from typing import Any, NamedTuple

from server.cluster.autoscaling import WARM_UP_SECONDS, Load, decide, wish

BUSY, IDLE, STALLED = Load(4, 20, 0.0), Load(0, 0, 0.0), Load(4, 0, 0.9)
BOTH = frozenset({"a", "b"})


def test_a_long_queue_asks_for_more() -> None:
    assert wish({"a": BUSY, "b": BUSY}, BOTH) == 1


def test_stalls_of_all_warm_replicas_ask_for_more() -> None:
    assert wish({"a": STALLED, "b": STALLED}, BOTH) == 1


def test_stalls_of_a_replica_that_warms_up_do_not_count() -> None:
    assert wish({"a": Load(4, 0, 0.1), "b": STALLED}, frozenset({"a"})) == 0
    assert wish({"b": STALLED}, frozenset()) == 0


def test_idle_replicas_are_too_many_but_for_one() -> None:
    assert wish({"a": IDLE, "b": IDLE}, BOTH) == -1
    assert wish({"a": IDLE}, frozenset({"a"})) == 0


class Replica(NamedTuple):
    """A replica as Serve names it."""

    unique_id: str


def run(loads: dict[str, Load], seconds: float = 0.0, target: int | None = None) -> int:
    """Decide twice, so many seconds apart, and return the number of replicas."""
    replicas = {name: Replica(name) for name in loads}
    metrics = {field: {replicas[name]: getattr(load, field) for name, load in loads.items()} for field in Load._fields}
    state: dict[str, Any] = {}
    number = 0
    for now in (0.0, seconds):
        context = SimpleNamespace(
            current_time=now,
            policy_state=state,
            running_replicas=list(replicas.values()),
            aggregated_metrics=metrics,
            target_num_replicas=len(loads) if target is None else target,
            capacity_adjusted_min_replicas=1,
            capacity_adjusted_max_replicas=8,
        )
        number, state = decide(context)
    return number


def test_a_long_queue_asks_for_as_many_replicas_as_it_needs() -> None:
    assert run({"a": BUSY}) == 2
    assert run({"a": Load(4, 100, 0.0), "b": BUSY}) == 4


def test_two_idle_replicas_become_one() -> None:
    assert run({"a": IDLE, "b": IDLE}) == 1


def test_no_further_replica_is_asked_for_while_one_starts() -> None:
    assert run({"a": BUSY}, target=2) == 2


def test_replicas_that_stall_are_scaled_only_when_they_are_warm() -> None:
    loads = {"a": STALLED, "b": STALLED}
    assert run(loads, WARM_UP_SECONDS - 1) == 2
    assert run(loads, WARM_UP_SECONDS) == 3
