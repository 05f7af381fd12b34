"""Foreign web pages in a browser: a foreign ``Origin``, and DNS rebinding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from server.api.core.access.host_rules import HostRules
from server.api.core.service.service import Service
from server.engine.text.codec import Codec
from server.lifecycle.service_setup import make_service
from server.settings import ServeSettings
from tests.server.engine.fakes import Rig
from tests.server.live.conftest import FakeServer, serving_rig
from tests.server.live.requests import ask, headers_of, status_of

FRIEND = "https://chat.example.org"
COMPLETION = b'{"prompt": [97], "max_tokens": 1}'

Start = Callable[[HostRules], FakeServer]


@pytest.fixture(scope="module")
def start(codec: Codec) -> Iterator[Start]:
    """Start a server, or reuse the one with these host rules."""
    with ExitStack() as stack:
        servers: dict[HostRules, FakeServer] = {}

        def take(hosts: HostRules) -> FakeServer:
            if hosts not in servers:
                servers[hosts] = stack.enter_context(serving_rig(Rig(), codec, service=Service("1", host_rules=hosts)))
            return servers[hosts]

        yield take


PRIVATE = HostRules(is_private=True)
NAMED = HostRules(is_private=True, allowed=frozenset({"greenroom.example.org"}))
PUBLIC = HostRules()
PUBLIC_NAMED = HostRules(allowed=frozenset({"greenroom.example.org"}))


def request(method: str = "GET", target: str = "/health", body: bytes = b"", **headers: str) -> bytes:
    lines = {"Host": "localhost", "Connection": "close"} | {name.replace("_", "-"): v for name, v in headers.items()}
    lines |= {"Content-Length": str(len(body))} if body else {}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode() + body


@pytest.mark.parametrize(
    ("hosts", "host", "status"),
    [
        (PRIVATE, "localhost", 200),
        (PRIVATE, "LOCALHOST:8000", 200),
        (PRIVATE, "app.localhost", 200),
        (PRIVATE, "127.0.0.1:1", 200),
        (PRIVATE, "[::1]:8000", 200),
        (PRIVATE, "evil.example", 403),
        (PRIVATE, "evil.example:8000", 403),
        (PRIVATE, "localhost.evil.example", 403),
        (PRIVATE, "evillocalhost", 403),
        (PRIVATE, "127.0.0.1.nip.io", 403),
        (PRIVATE, "192.168.1.2", 403),
        (PRIVATE, "0.0.0.0", 403),
        (PRIVATE, "greenroom.example.org", 403),
        (NAMED, "greenroom.example.org", 200),
        (NAMED, "Greenroom.Example.Org:443", 200),
        (NAMED, "localhost", 200),
        (NAMED, "evil.example", 403),
        (PUBLIC, "anything.example", 200),
        (PUBLIC, "192.168.1.2:8000", 200),
        (PUBLIC_NAMED, "greenroom.example.org", 200),
        (PUBLIC_NAMED, "anything.example", 403),
        (PUBLIC_NAMED, "localhost", 200),
    ],
)
def test_names(start: Start, hosts: HostRules, host: str, status: int) -> None:
    """Requests with a foreign host name are refused, on operation routes as well."""
    for target in ("/health", "/v1/models"):
        assert status_of(ask(start(hosts).port, request(target=target, Host=host))) == status


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://localhost:9", "null", "file://", "http://localhost.evil", "", "\xff"]
)
@pytest.mark.parametrize("kind", ["text/plain", "application/json"])
def test_a_page_of_another_origin_is_refused(start: Start, origin: str, kind: str) -> None:
    """Holds for bodies that a browser sends without a preflight request, too."""
    server = start(PRIVATE)
    wanted = request("POST", "/v1/completions", COMPLETION, Origin=origin, Content_Type=kind)
    assert status_of(ask(server.port, wanted)) == 403
    preflight = request("OPTIONS", "/v1/completions", Origin=origin, Access_Control_Request_Method="POST")
    answer = ask(server.port, preflight)
    assert status_of(answer) == 403
    assert "access-control-allow-origin" not in headers_of(answer)
    server.wait_until_idle()
    assert server.rig.model.steps == []


@pytest.mark.parametrize(("host", "origin"), [("localhost:8000", "http://localhost:8000"), ("x:1", "https://X:1")])
def test_the_servers_own_pages_may_ask(start: Start, host: str, origin: str) -> None:
    assert status_of(ask(start(PUBLIC).port, request(Host=host, Origin=origin))) == 200


def test_two_origins_are_refused(start: Start) -> None:
    twice = request(Origin="http://localhost").replace(b"\r\n\r\n", b"\r\nOrigin: http://localhost\r\n\r\n")
    assert status_of(ask(start(PUBLIC).port, twice)) == 403


@pytest.mark.parametrize(("allowed", "answered"), [(FRIEND, FRIEND), ("*", "*")])
def test_an_allowed_origin_gets_cors_headers(start: Start, allowed: str, answered: str) -> None:
    server = start(HostRules(is_private=True, origins=frozenset({allowed})))
    preflight = request(
        "OPTIONS",
        "/v1/completions",
        Origin=FRIEND,
        Access_Control_Request_Method="POST",
        Access_Control_Request_Headers="authorization,content-type",
    )
    answer = ask(server.port, preflight)
    assert status_of(answer) == 200
    headers = headers_of(answer)
    assert headers["access-control-allow-origin"] == answered
    assert "authorization" in headers["access-control-allow-headers"]
    assert "POST" in headers["access-control-allow-methods"]
    assert "access-control-allow-credentials" not in headers
    wanted = request("POST", "/v1/completions", b"{}", Origin=FRIEND, Content_Type="application/json")
    answer = ask(server.port, wanted)
    assert (status_of(answer), headers_of(answer)["access-control-allow-origin"]) == (400, answered)
    is_open = allowed == "*"
    assert (status_of(ask(server.port, request(Origin="https://evil.example"))) == 200) == is_open


def test_without_an_origin_there_are_no_cors_headers(start: Start) -> None:
    answer = ask(start(PUBLIC).port, request())
    assert not any(name.startswith("access-control") for name in headers_of(answer))


def test_a_public_address_without_keys_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    assert make_service(ServeSettings(), "127.0.0.1").host_rules.is_private
    assert make_service(ServeSettings(), "::1").host_rules.is_private
    assert not make_service(ServeSettings(api_key=("k",)), "0.0.0.0").host_rules.is_private
    assert caplog.messages == []
    make_service(ServeSettings(), "0.0.0.0")
    assert caplog.messages == [
        "anyone who can reach 0.0.0.0 may use the API; set --api-key-file, or --allowed-host to prevent DNS rebinding"
    ]
    make_service(ServeSettings(allowed_host=("greenroom.example.org",)), "0.0.0.0")
    assert caplog.messages[1:] == ["anyone who can reach 0.0.0.0 may use the API; set --api-key-file"]
