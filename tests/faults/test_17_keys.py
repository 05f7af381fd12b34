"""Keys: a prefix, an empty bearer, other bytes than ASCII, several headers; every route is in one class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import anthropic
import openai
import pytest
from fastapi.routing import APIRoute

from server.api.core.access.api_keys import KeyRing, Keys
from server.api.core.access.host_rules import is_loopback
from server.api.core.errors import absent_routes
from server.api.core.service.openapi import body_model
from server.api.core.service.service import Service
from server.api.operations import health, metrics
from server.engine.text.codec import Codec
from server.lifecycle.application import application_of
from tests.faults.routes import leaves, roles
from tests.server.engine.fakes import Rig
from tests.server.live.conftest import LiveServer, serving_rig
from tests.server.live.requests import ask, error_of, headers_of, status_of

USER, OTHER_USER, ADMIN = "sk-user-1", "sk-user-2", "sk-admin-1"
OPEN_PATHS = {"/", "/web/{name}", "/health", "/ready", "/ping", "/version", "/metrics", "/openapi.json", "/v1/access"}
WITHOUT_BODY = {"/ping", "/reset_prefix_cache"}  # of POST


@pytest.fixture(scope="module")
def locked(codec: Codec) -> Iterator[LiveServer]:
    keys = Keys(KeyRing([USER, OTHER_USER]), KeyRing([ADMIN]))
    with serving_rig(Rig(), codec, service=Service("1", keys=keys)) as server:
        yield server


def get(path: str, headers: Sequence[bytes] = ()) -> bytes:
    lines = [b"GET %s HTTP/1.1" % path.encode(), b"Host: localhost", b"Connection: close", *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


@pytest.mark.parametrize(
    "headers",
    [
        [b"Authorization: Bearer sk-user-1"],
        [b"authorization: bearer sk-user-2"],
        [b"Authorization: Bearer  sk-user-1 "],
        [b"x-api-key: sk-user-1"],
        [b"X-API-Key: sk-admin-1"],
        [b"Authorization: Bearer placeholder", b"x-api-key: sk-user-1"],
    ],
)
def test_each_key_opens_the_api_in_either_header(locked: LiveServer, headers: Sequence[bytes]) -> None:
    assert status_of(ask(locked.port, get("/v1/models", headers))) == 200


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [b"Authorization: Bearer sk-user-"],
        [b"Authorization: Bearer sk-user-11"],
        [b"Authorization: Bearer SK-USER-1"],
        [b"Authorization: Bearer"],
        [b"Authorization: Bearer "],
        [b"Authorization:"],
        [b"Authorization: Basic sk-user-1"],
        [b"Authorization: sk-user-1"],
        [b"Authorization: Bearer sk-user-1, Bearer sk-user-1"],
        [b"Authorization: Bearer sk-user-1", b"Authorization: Bearer sk-user-1"],
        [b"x-api-key: sk-user-1", b"x-api-key: other"],
        [b"x-api-key:"],
        [b"Authorization: Bearer \xff\xfe\x80"],
        ["Authorization: Bearer sk-üser-1".encode()],
        [b"x-api-key: " + b"k" * 10_000],
        [b"Cookie: api_key=sk-user-1"],
    ],
)
def test_anything_else_is_401_in_openais_form(locked: LiveServer, headers: Sequence[bytes]) -> None:
    answer = ask(locked.port, get("/v1/models?api_key=sk-user-1", headers))
    error = error_of(answer)
    assert (status_of(answer), error["code"], error["type"]) == (401, "invalid_api_key", "invalid_request_error")
    assert headers_of(answer)["www-authenticate"] == "Bearer"
    assert "sk-user" not in error["message"]


def test_a_request_without_a_key_is_refused_before_its_body_is_read(locked: LiveServer) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    assert status_of(ask(locked.port, head + b"Content-Length: 9000000\r\n\r\n")) == 401


def test_openais_client_sends_a_key_and_knows_a_refusal(locked: LiveServer) -> None:
    url = f"http://127.0.0.1:{locked.port}/v1"
    with openai.OpenAI(base_url=url, api_key=USER, max_retries=0) as client:
        assert client.models.list().data[0].id == "fake"
    with openai.OpenAI(base_url=url, api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as error:
            client.models.list()
        assert error.value.code == "invalid_api_key"


def test_anthropics_client_sends_a_key_and_knows_a_refusal(locked: LiveServer) -> None:
    asked = {"model": "fake", "max_tokens": 1, "messages": [{"role": "user", "content": "Hello"}]}
    url = f"http://127.0.0.1:{locked.port}"
    with anthropic.Anthropic(base_url=url, api_key=OTHER_USER, max_retries=0) as client:
        assert client.messages.create(**asked).usage.output_tokens == 1
    with anthropic.Anthropic(base_url=url, api_key="wrong", max_retries=0) as client:
        with pytest.raises(anthropic.AuthenticationError) as error:
            client.messages.create(**asked)
        assert error.value.body["error"]["type"] == "authentication_error"


def test_operations_need_no_key(locked: LiveServer) -> None:
    for path in ("/", "/web/main.js", "/health", "/ready", "/version", "/metrics"):
        assert status_of(ask(locked.port, get(path))) == 200


def test_without_keys_the_api_is_open_and_takes_any_key(live: LiveServer) -> None:
    assert status_of(ask(live.port, get("/v1/models"))) == 200
    assert status_of(ask(live.port, get("/v1/models", [b"Authorization: Bearer EMPTY"]))) == 200


def test_keys_appear_in_no_repr() -> None:
    ring = KeyRing([USER])
    assert "sk-" not in repr(ring)
    assert "sk-" not in repr(Service("1", keys=Keys(ring, ring)))


def test_every_route_is_in_exactly_one_class() -> None:
    """A route without a guard, or with two, fails here."""
    app = application_of(Service("1"))
    guards = {path: roles(route) for path, route in leaves(app.routes)}
    assert {path for path, found in guards.items() if not found} == OPEN_PATHS
    assert all(len(found) <= 1 for found in guards.values())
    assert guards["/v1/chat/completions"] == ["user"]
    assert {route.path for module in (health, metrics) for _, route in leaves(module.router.routes)} < OPEN_PATHS


def test_every_body_is_read_within_limits() -> None:
    """A route whose body FastAPI would read fails here."""
    routes = [route for _, route in leaves(application_of(Service("1")).routes) if isinstance(route, APIRoute)]
    assert [route.path for route in routes if route.body_field is not None] == []
    with_bodies = {route.path for route in routes if body_model(route) is not None}
    present = [route for route in routes if route.endpoint.__module__ != absent_routes.__name__]  # those read none
    assert with_bodies == {route.path for route in present if "POST" in route.methods} - WITHOUT_BODY


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1", "::ffff:7f00:1"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["10.0.0.1", "::ffff:10.0.0.1", "::", "0.0.0.0", "localhost", "", "127.0.0.1.evil"])
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)
