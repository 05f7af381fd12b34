"""Serve's router, with replicas that a test makes up."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray takes a second to import, and warns


@pytest.fixture(scope="module")
def module() -> Any:
    from server.cluster import router  # noqa: PLC0415

    return router


def replica(name: str, **statistics: Any) -> SimpleNamespace:
    return SimpleNamespace(replica_id=SimpleNamespace(unique_id=name), routing_stats=statistics)


A, B = replica("a"), replica("b")


def make(module: Any) -> Any:
    from server.cluster.shared_fleet import SharedFleet  # noqa: PLC0415

    router = module.HoldingsRouter.__new__(module.HoldingsRouter)
    router._fleet, router._told = SharedFleet(), {}
    router._fleet.keep(["a", "b"])
    return router


def pending(*arguments: Any) -> SimpleNamespace:
    return SimpleNamespace(args=arguments, routing_context=SimpleNamespace(should_backoff=False))


def submission(num_tokens: int = 64, *blocks: bytes) -> SimpleNamespace:
    from server.cluster.signatures import RoutedRequest  # noqa: PLC0415

    return SimpleNamespace(routed=RoutedRequest(num_tokens, blocks))


def choose(router: Any, request: Any) -> list[list[Any]]:
    return asyncio.run(router.choose_replicas([A, B], request))


def test_the_replica_that_holds_the_prefix_comes_first_and_no_replica_is_left_out(module: Any) -> None:
    from server.cluster.scoring import ReplicaState  # noqa: PLC0415

    router, request = make(module), pending(submission(64, b"1", b"2", b"3", b"4"))
    router._fleet.update("b", ReplicaState(blocks=frozenset([b"1", b"2", b"3", b"4"])))
    assert choose(router, request) == [[B], [A]]
    assert request.routing_context.should_backoff


def test_replicas_that_the_fleet_does_not_know_are_tried_last(module: Any) -> None:
    router = make(module)
    router._fleet.keep(["b"])
    assert choose(router, pending(submission())) == [[B], [A]]


def test_calls_of_administrators_go_to_any_replica(module: Any) -> None:
    assert choose(make(module), pending("call", "experts", "overview")) == [[A, B]]


@pytest.mark.parametrize(("name", "ranks"), [("b", [[B]]), ("gone", [[A, B]])])
def test_a_call_for_one_replica_goes_there_while_it_runs(module: Any, name: str, ranks: list[list[Any]]) -> None:
    from server.cluster.wire import SharedCall  # noqa: PLC0415

    assert choose(make(module), pending(SharedCall("me", name))) == ranks


def test_a_failed_choice_is_any_replica(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    router = make(module)
    monkeypatch.setattr(router._fleet, "order", lambda _: 1 / 0)
    assert choose(router, pending(submission())) == [[A, B]]
