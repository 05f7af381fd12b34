"""Priorities over a socket: users have a bound, administrators have none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from server.api.core.access.api_keys import KeyRing, Keys
from server.api.core.service.service import Service
from server.engine.text.codec import Codec
from tests.server.engine.fakes import Rig
from tests.server.live.conftest import FakeServer, serving_rig
from tests.server.live.requests import ask, error_of, post, status_of

CHAT = [{"role": "user", "content": "Hello"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": [97], "max_tokens": 1},
    "/v1/chat/completions": {"messages": CHAT, "max_tokens": 1},
    "/v1/responses": {"input": "Hello", "max_output_tokens": 1},
    "/v1/messages": {"messages": CHAT, "max_tokens": 1},
    "/v1/embeddings": {"input": [97]},
    "/v1/score": {"queries": "a", "documents": "b"},
}


@pytest.fixture(scope="module")
def locked(codec: Codec) -> Iterator[FakeServer]:
    service = Service("1", keys=Keys(KeyRing(["user"]), KeyRing(["admin"])))
    with serving_rig(Rig(num_blocks=2048), codec, service=service) as server:
        yield server


def asked(server: FakeServer, path: str, key: str, priority: int, forwarded: bytes = b"") -> bytes:
    request = post(path, priority=priority, **BODIES[path])
    head = b"\r\nAuthorization: Bearer %s\r\n%s" % (key.encode(), forwarded)
    return ask(server.port, request.replace(b"\r\n", head, 1))


@pytest.mark.parametrize("path", BODIES)
def test_a_user_can_not_go_before_all_others(locked: FakeServer, path: str) -> None:
    answer = asked(locked, path, "user", -1)
    assert status_of(answer) == 400
    assert b"'priority' is -1, but only an administrator may send less than 0" in answer


@pytest.mark.parametrize("path", BODIES)
def test_an_administrator_may(locked: FakeServer, path: str) -> None:
    assert status_of(asked(locked, path, "admin", -1_000_000)) == 200


def test_a_user_may_go_after_others(locked: FakeServer) -> None:
    assert status_of(asked(locked, "/v1/completions", "user", 1_000_000)) == 200


def test_without_an_admin_key_only_this_machine_is_an_administrator(live: FakeServer) -> None:
    assert status_of(asked(live, "/v1/completions", "any", -5)) == 200
    answer = asked(live, "/v1/completions", "any", -5, b"X-Forwarded-For: 10.0.0.9\r\n")
    assert (status_of(answer), error_of(answer)["param"]) == (400, "priority")
