"""CR, LF, ANSI and NUL in values of a client: no forged header, no forged log line."""

from __future__ import annotations

import json
import logging

import pytest

from tests.server.live.conftest import FakeServer
from tests.server.live.requests import ask, error_of, headers_of, post_bytes, status_of

FORGED = (
    "a\r\nSet-Cookie: x=1",
    "a\nINFO forged",
    "\x1b[31mred\x1b[0m",
    "a\x00b",
    "\u2028\u2029\x85",
    "ü漢😀",
    "a" * 5000,
)


def completion(**fields: object) -> bytes:
    return post_bytes("/v1/completions", json.dumps({"prompt": [97], "max_tokens": 1, **fields}).encode())


def is_plain(text: str) -> bool:
    """Check that a text is one line without control characters."""
    return text.isprintable() and len(text) < 400


@pytest.fixture(autouse=True)
def all_logs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


@pytest.mark.parametrize("name", FORGED, ids=range(len(FORGED)))
def test_a_models_name(shared_live: FakeServer, name: str, caplog: pytest.LogCaptureFixture) -> None:
    for answer in (
        ask(shared_live.port, completion(model=name)),
        ask(shared_live.port, post_bytes("/v1/messages", json.dumps({"model": name}).encode())),
    ):
        assert is_plain(error_of(answer)["message"])
        assert "set-cookie" not in headers_of(answer)
    assert all(map(is_plain, caplog.messages))


@pytest.mark.parametrize("name", FORGED, ids=range(len(FORGED)))
def test_unknown_fields_values_and_parameters(
    shared_live: FakeServer, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    answers = [
        ask(shared_live.port, completion(**{name: 1})),
        ask(shared_live.port, completion(n=name)),
        ask(shared_live.port, completion(logit_bias={name: 1})),
        ask(shared_live.port, completion(stop=[{name: name}])),
        ask(shared_live.port, completion(user=name, metadata={name: name})),
    ]
    assert [status_of(answer) for answer in answers] == [200, 400, 400, 400, 200]
    assert all(is_plain(error_of(answer)["message"]) for answer in answers[1:4])
    assert all(map(is_plain, caplog.messages))


@pytest.mark.parametrize("name", FORGED, ids=range(len(FORGED)))
def test_a_path(shared_live: FakeServer, name: str, caplog: pytest.LogCaptureFixture) -> None:
    target = "".join(f"%{byte:02x}" for byte in name.encode())
    request = f"GET /v1/{target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = ask(shared_live.port, request.encode())
    assert status_of(answer) == 404
    assert is_plain(error_of(answer)["message"])
    answer = ask(shared_live.port, request.replace("/v1/", "/v1/models/").encode())
    assert status_of(answer) == 404
    assert is_plain(error_of(answer)["message"])
    assert all(map(str.isprintable, caplog.messages))


@pytest.mark.parametrize(
    "sent", [b"a\rb", b"a\x1b[31m", b"a\x00", "ü".encode(), b"\xff", b"a b", b"a;b", b"a" * 129, b""]
)
def test_a_request_id_that_could_forge_anything_is_replaced(shared_live: FakeServer, sent: bytes) -> None:
    head = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Request-Id: %s\r\n\r\n" % sent
    answer = ask(shared_live.port, head)
    if status_of(answer) == 200:  # bytes that no header may have are refused before
        assert len(headers_of(answer)["x-request-id"]) == 32
        assert headers_of(answer)["x-request-id"].isalnum()
    assert sent == b"" or sent not in answer.partition(b"\r\n\r\n")[0]


def test_a_well_formed_request_id_is_returned(shared_live: FakeServer) -> None:
    head = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Request-Id: job-7_b.2\r\n\r\n"
    assert headers_of(ask(shared_live.port, head))["x-request-id"] == "job-7_b.2"
