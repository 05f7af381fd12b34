"""Cached prefixes over a socket: who shares them with whom, by ``cache_salt`` and by API key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from server.api.core.access.api_keys import KeyRing, Keys
from server.api.core.service.service import Service
from server.engine.text.codec import Codec
from tests.server.engine.fakes import Rig
from tests.server.live.conftest import FakeServer, serving_rig

TEXT = "a question " * 8
CHAT = [{"role": "user", "content": TEXT}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": TEXT, "max_tokens": 2},
    "/v1/chat/completions": {"messages": CHAT, "max_tokens": 2},
    "/v1/responses": {"input": CHAT, "max_output_tokens": 2},
    "/v1/messages": {"messages": CHAT, "max_tokens": 2},
    "/v1/embeddings": {"input": TEXT, "pooling": "last"},
    "/v1/score": {"queries": TEXT, "documents": "other", "pooling": "last"},
}
GENERATING = [path for path in BODIES if "max" in str(BODIES[path])]


@pytest.fixture
def isolated(codec: Codec) -> Iterator[FakeServer]:
    service = Service("1", keys=Keys(KeyRing(["mine", "yours"]), KeyRing(["admin"])), isolates_prefixes=True)
    with serving_rig(Rig(num_blocks=2048), codec, service=service) as server:
        yield server


def cached_tokens(server: FakeServer, path: str, key: str = "mine", **fields: Any) -> int:
    """Send a request, and return how many tokens of its prompt were cached."""
    before = server.engine.statistics.prefix_cache_hits
    url = f"http://127.0.0.1:{server.port}{path}"
    answer = httpx.post(url, json={**BODIES[path], **fields}, headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == 200, answer.text
    return server.engine.statistics.prefix_cache_hits - before


@pytest.mark.slow
@pytest.mark.parametrize("path", GENERATING)
def test_requests_share_prefixes_with_those_of_the_same_salt(live: FakeServer, path: str) -> None:
    cached_tokens(live, path)
    assert cached_tokens(live, path, cache_salt="a") == 0
    assert cached_tokens(live, path, cache_salt="b") == 0
    assert cached_tokens(live, path, cache_salt="a") > 0


@pytest.mark.slow
@pytest.mark.parametrize("path", BODIES)
def test_isolated_keys_share_no_prefixes(isolated: FakeServer, path: str) -> None:
    cached_tokens(isolated, path)
    assert cached_tokens(isolated, path, "yours") == 0
    assert cached_tokens(isolated, path, "admin") == 0
    assert cached_tokens(isolated, path) > 0


def test_an_isolated_key_can_not_name_the_salt_of_another(isolated: FakeServer) -> None:
    cached_tokens(isolated, "/v1/completions", cache_salt="a")
    assert cached_tokens(isolated, "/v1/completions", "yours", cache_salt="a") == 0
    assert cached_tokens(isolated, "/v1/completions") == 0
    assert cached_tokens(isolated, "/v1/completions", cache_salt="a") > 0


@pytest.mark.parametrize("salt", ["", 5, "x" * 1025])
def test_a_salt_is_a_string_of_some_characters(live: FakeServer, salt: object) -> None:
    answer = httpx.post(f"http://127.0.0.1:{live.port}/v1/completions", json={"prompt": "x", "cache_salt": salt})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "cache_salt")
