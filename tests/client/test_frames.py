"""Frames from snapshots and updates of experts."""

from __future__ import annotations

import httpx
import pytest

from client import InvalidReplyError, NotFoundError, StreamFailedError, StreamInterruptedError
from client.frames import DEVICE, DISK, HOST, apply_update, parse_snapshot
from tests.client.bodies import REFUSAL, SNAPSHOT, STATE, event
from tests.client.conftest import AnyClient

UPDATE = {
    "residency": [[4, 1, 1]],
    "tokens": [[4, 1, 3], [1, 2, 1]],
    "pinned": None,
    "balance": None,
    **STATE,
    "loaded_bytes": 9216,
}


def test_updates_change_the_named_experts_only() -> None:
    first = parse_snapshot(SNAPSHOT)
    second = apply_update(first, UPDATE)
    assert first.residency == ((DISK, HOST, DEVICE), (DISK, DISK, HOST))
    assert second.residency == ((DISK, HOST, DEVICE), (DISK, HOST, HOST))
    assert second.residency[0] is first.residency[0]
    assert second.tokens == ((0, 5, 7), (0, 3, 9))
    assert (first.loaded_bytes, second.loaded_bytes) == (8192, 9216)
    assert (second.model, second.layers, second.pinned) == ("tiny", (1, 4), frozenset({(1, 2)}))
    assert apply_update(second, UPDATE | {"pinned": []}).pinned == frozenset()
    assert second.balance is first.balance
    assert apply_update(second, UPDATE | {"balance": []}).balance == ()


def test_each_event_yields_a_frame(any_client: AnyClient) -> None:
    body = event(SNAPSHOT, "snapshot") + event(UPDATE, "update") + event(UPDATE, "update") + event({}, "news")
    any_client.handler = lambda _: httpx.Response(200, content=body)
    frames, result = any_client.stream("watch_experts", 2, take=3)
    assert [frame.tokens[1][1] for frame in frames] == [0, 3, 6]
    assert result is frames[-1]
    assert str(any_client.requests[0].url.query, "ascii") == "interval=2"


def test_an_expert_stream_that_ends_raises(any_client: AnyClient) -> None:
    any_client.handler = lambda _: httpx.Response(200, content=event(SNAPSHOT, "snapshot") + event({}, "news"))
    with pytest.raises(StreamInterruptedError):
        any_client.stream("watch_experts")


@pytest.mark.parametrize(
    "body",
    [
        event({"model": "x"}, "snapshot"),
        event(SNAPSHOT, "snapshot") + event(UPDATE | {"tokens": [[9, 0, 1]]}, "update"),
        event(SNAPSHOT, "snapshot") + event(UPDATE | {"residency": [[1, 9, 1]]}, "update"),
        event("[]", "snapshot"),
        event("{", "update"),
    ],
)
def test_events_of_another_shape_are_refused(any_client: AnyClient, body: bytes) -> None:
    any_client.handler = lambda _: httpx.Response(200, content=body)
    with pytest.raises(InvalidReplyError):
        any_client.stream("watch_experts")


def test_failures_are_raised(any_client: AnyClient) -> None:
    any_client.handler = lambda _: httpx.Response(200, content=event(REFUSAL))
    with pytest.raises(StreamFailedError):
        any_client.stream("watch_experts")
    any_client.handler = lambda _: httpx.Response(404, json=REFUSAL)
    with pytest.raises(NotFoundError):
        any_client.stream("watch_experts")
