"""Snapshots and updates of experts, put together."""

from __future__ import annotations

import httpx
import pytest

from client import InvalidReplyError, NotFoundError, StreamFailedError, StreamInterruptedError
from client.frames import DEVICE, DISK, HOST, snapshot_of, updated
from tests.client.bodies import REFUSAL, SNAPSHOT, STATE, event
from tests.client.conftest import Asker

UPDATE = {"residency": [[4, 1, 1]], "tokens": [[4, 1, 3], [1, 2, 1]], "pinned": None, **STATE, "loaded_bytes": 9216}


def test_updates_change_what_they_name() -> None:
    first = snapshot_of(SNAPSHOT)
    second = updated(first, UPDATE)
    assert first.residency == ((DISK, HOST, DEVICE), (DISK, DISK, HOST))
    assert second.residency == ((DISK, HOST, DEVICE), (DISK, HOST, HOST))
    assert second.residency[0] is first.residency[0]
    assert second.tokens == ((0, 5, 7), (0, 3, 9))
    assert (first.loaded_bytes, second.loaded_bytes) == (8192, 9216)
    assert (second.model, second.layers, second.pinned) == ("tiny", (1, 4), frozenset({(1, 2)}))
    assert updated(second, UPDATE | {"pinned": []}).pinned == frozenset()


def test_frames_come_with_each_event(asker: Asker) -> None:
    body = event(SNAPSHOT, "snapshot") + event(UPDATE, "update") + event(UPDATE, "update") + event({}, "news")
    asker.handler = lambda _: httpx.Response(200, content=body)
    frames, result = asker.stream("watch_experts", 2, take=3)
    assert [frame.tokens[1][1] for frame in frames] == [0, 3, 6]
    assert result is frames[-1]
    assert str(asker.requests[0].url.query, "ascii") == "interval=2"


def test_a_stream_of_experts_that_ends_was_interrupted(asker: Asker) -> None:
    asker.handler = lambda _: httpx.Response(200, content=event(SNAPSHOT, "snapshot") + event({}, "news"))
    with pytest.raises(StreamInterruptedError):
        asker.stream("watch_experts")


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
def test_events_of_another_shape_are_refused(asker: Asker, body: bytes) -> None:
    asker.handler = lambda _: httpx.Response(200, content=body)
    with pytest.raises(InvalidReplyError):
        asker.stream("watch_experts")


def test_failures_are_raised(asker: Asker) -> None:
    asker.handler = lambda _: httpx.Response(200, content=event(REFUSAL))
    with pytest.raises(StreamFailedError):
        asker.stream("watch_experts")
    asker.handler = lambda _: httpx.Response(404, json=REFUSAL)
    with pytest.raises(NotFoundError):
        asker.stream("watch_experts")
