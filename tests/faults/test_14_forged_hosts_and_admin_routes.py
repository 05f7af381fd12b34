"""Every verb on every admin route, with and without a key, with any host."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import anyio
import httpx
import pytest
from fastapi import FastAPI, Response

from server.api.core.access.api_keys import KeyRing, Keys
from server.api.core.access.host_rules import HostRules
from server.api.core.service.guard import AdminDep
from server.api.core.service.service import Service
from server.engine.text.codec import Codec
from server.lifecycle.application import application_of
from tests.faults.routes import leaves, roles
from tests.server.engine.fakes import Rig
from tests.server.live.conftest import FakeServer, serving_rig
from tests.server.live.requests import ask, error_of, status_of

VERBS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "get", "BREW")
FORGED = (
    "localhost/health?",
    "localhost#",
    "localhost:8000@evil.example",
    "evil.example, localhost",
    "local host",
    "localhost:port",
    "[::1",
    "",
    "127.0.0.1\\health",
    "héalth",
)


def app_with_admin_routes(keys: Keys) -> FastAPI:
    """The app, and an admin route for each verb."""
    app = application_of(Service("1", keys=keys))
    app.add_api_route("/admin", lambda: Response("secret"), methods=[*VERBS[:8]], dependencies=[AdminDep])
    return app


def admin_paths(app: FastAPI) -> list[str]:
    paths = [path for path, route in leaves(app.routes) if roles(route) == ["admin"]]
    return [path.format(layer=0, expert=0, name="x") for path in paths]


def statuses(app: FastAPI, client: str, headers: dict[str, str]) -> set[int]:
    """Yield every verb on every admin route."""

    async def ask_all() -> set[int]:
        transport = httpx.ASGITransport(app, client=(client, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as session:
            return {
                (await session.request(verb, path, headers=headers)).status_code
                for path in admin_paths(app)
                for verb in VERBS
            }

    return anyio.run(ask_all)


@pytest.mark.slow
@pytest.mark.parametrize("client", ["127.0.0.1", "::1", "10.0.0.9"])
def test_with_an_admin_key_set_no_other_key_is_accepted(client: str) -> None:
    app = app_with_admin_routes(Keys(KeyRing(["user"]), KeyRing(["admin"])))
    assert statuses(app, client, {}) <= {401, 405}
    assert statuses(app, client, {"Authorization": "Bearer admi"}) <= {401, 405}
    assert statuses(app, client, {"Authorization": "Bearer user"}) <= {403, 405}
    assert 200 in statuses(app, client, {"Authorization": "Bearer admin"})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("client", "headers", "is_open"),
    [
        ("127.0.0.1", {}, True),
        ("127.0.0.9", {"Host": "127.0.0.1:8000"}, True),
        ("::1", {"Host": "[::1]:8000"}, True),
        ("::ffff:127.0.0.1", {}, True),
        ("10.0.0.9", {}, False),
        ("::ffff:10.0.0.9", {}, False),
        ("10.0.0.9", {"X-Forwarded-For": "127.0.0.1", "Forwarded": "for=127.0.0.1"}, False),
        ("127.0.0.1", {"X-Forwarded-For": "10.0.0.9"}, False),
        ("127.0.0.1", {"X-Forwarded-For": "127.0.0.1"}, False),
        ("127.0.0.1", {"Forwarded": "for=10.0.0.9"}, False),
        ("127.0.0.1", {"X-Forwarded-Proto": "https"}, False),
        ("127.0.0.1", {"CF-Connecting-IP": "10.0.0.9"}, False),
        ("127.0.0.1", {"Host": "evil.example"}, False),
        ("127.0.0.1", {"Host": "localhost.evil.example"}, False),
        ("127.0.0.1", {"Host": "127.0.0.1.evil.example"}, False),
    ],
)
def test_without_an_admin_key_they_answer_only_to_this_machine(
    client: str, headers: dict[str, str], is_open: bool
) -> None:
    found = statuses(app_with_admin_routes(Keys()), client, headers)
    assert (200 in found) == is_open
    assert is_open or found <= {403, 405}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "Client-IP",
        "X-Client-IP",
        "X-Cluster-Client-IP",
        "True-Client-IP",
        "Fastly-Client-IP",
        "Fly-Client-IP",
        "WL-Proxy-Client-IP",
        "X-Real-IP",
        "X-Envoy-External-Address",
        "X-Envoy-Internal",
        "X-Original-Forwarded-For",
        "X-Azure-ClientIP",
        "X-Azure-SocketIP",
        "X-Appengine-User-IP",
        "X-Originating-IP",
        "X-Remote-Addr",
        "X-ProxyUser-IP",
        "CF-Connecting-IPv6",
        "DO-Connecting-IP",
        "Via",
        "CDN-Loop",
    ],
)
def test_a_request_that_a_proxy_passed_on_is_not_of_this_machine(name: str) -> None:
    """A proxy on this machine speaks for others; each has a name of its own for their address."""
    assert statuses(app_with_admin_routes(Keys()), "127.0.0.1", {name: "10.0.0.9"}) <= {403, 405}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["X-Stainless-Retry-Count", "User-Agent", "X-Request-Id", "Accept-Encoding", "X-Zip"])
def test_other_headers_do_not_make_a_request_remote(name: str) -> None:
    assert 200 in statuses(app_with_admin_routes(Keys()), "127.0.0.1", {name: "1"})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("origin", "is_open"),
    [
        ("http://localhost", True),
        ("https://chat.example", False),
        ("http://localhost:3000", False),
        ("null", False),
    ],
)
def test_a_page_that_may_use_the_api_is_no_administrator(origin: str, is_open: bool) -> None:
    """Without an admin key, a browser on this machine would give every foreign page access."""
    app = application_of(Service("1", host_rules=HostRules(origins=frozenset({"*"}))))
    app.add_api_route("/admin", lambda: Response("secret"), dependencies=[AdminDep])
    assert (200 in statuses(app, "127.0.0.1", {"Origin": origin})) == is_open


@pytest.mark.parametrize("path", ["/health/", "/v1/experts/", "/v1/completions/"])
def test_there_are_no_redirects(locked: FakeServer, path: str) -> None:
    """A redirect would go to the client's host name over http, with its key."""
    answer = ask(locked.port, get(path, ["Host: evil.example", "Authorization: Bearer user"]))
    assert status_of(answer) == 404
    assert b"evil.example" not in answer


@pytest.fixture(scope="module")
def locked(codec: Codec) -> Iterator[FakeServer]:
    with serving_rig(Rig(), codec, service=Service("1", keys=Keys(KeyRing(["user"])))) as server:
        yield server


def get(target: str, headers: Sequence[str]) -> bytes:
    return "\r\n".join([f"GET {target} HTTP/1.1", *headers, "Connection: close", "", ""]).encode()


@pytest.mark.parametrize("host", FORGED)
def test_a_forged_host_is_refused_and_opens_nothing(locked: FakeServer, host: str) -> None:
    answer = ask(locked.port, get("/v1/models", [f"Host: {host}"]))
    assert status_of(answer) == 400


@pytest.mark.parametrize("headers", [[], ["Host: localhost", "Host: localhost"], ["Host: localhost", "Host: evil"]])
def test_there_is_exactly_one_host(locked: FakeServer, headers: Sequence[str]) -> None:
    answer = ask(locked.port, get("/health", headers))
    assert status_of(answer) == 400
    assert error_of(answer)["message"] == "The request must have exactly one header 'host' with the server's name."


def test_a_host_is_refused_in_the_form_of_the_dialect(locked: FakeServer) -> None:
    bodies = [
        ask(locked.port, get(path, []).replace(b"GET", b"POST")).partition(b"\r\n\r\n")[2]
        for path in ("/v1/chat/completions", "/v1/messages", "/api/chat", "/nowhere")
    ]
    openai, anthropic, ollama, unknown = map(json.loads, bodies)
    assert openai == unknown
    assert openai["error"]["type"] == "invalid_request_error"
    assert anthropic["type"] == "error"
    assert ollama["error"] == openai["error"]["message"]


@pytest.mark.parametrize(
    "target",
    [
        "/v1/models?/health",
        "/v1/models/?x=/health",
        "/health/../v1/models",
        "/%68ealth/%2e%2e/v1/models",
        "//health/v1/models",
        "/v1/models#/health",
        "/v1/models;/health",
        "/V1/MODELS",
        "/v1/models/",
        "http://localhost/v1/models",
        "http://evil.example/health",
    ],
)
def test_no_spelling_of_a_path_goes_past_the_key(locked: FakeServer, target: str) -> None:
    answer = ask(locked.port, get(target, ["Host: localhost"]))
    assert status_of(answer) in {400, 401, 404}
    assert b"max_model_len" not in answer
