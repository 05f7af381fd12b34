"""Rate limits over a socket; a request is released however it ends."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import pytest

from server.api.core.access.api_keys import KeyRing, Keys
from server.api.core.access.rate_limiter import RATE_HEADERS, RateLimiter, RateLimits
from server.api.core.service.service import Service
from server.engine.text.codec import Codec
from tests.server.engine.fakes import Rig
from tests.server.live.conftest import FakeServer, serving_rig
from tests.server.live.requests import ask, complete, error_of, headers_of, post_bytes, status_of


def sent_by(key: str, request: bytes) -> bytes:
    return request.replace(b"\r\n", b"\r\nAuthorization: Bearer %s\r\n" % key.encode(), 1)


@pytest.fixture
def narrow(codec: Codec) -> Iterator[FakeServer]:
    """A server that runs one request of each key at a time."""
    service = Service("1", keys=Keys(KeyRing(["a", "b"])), rate_limiter=RateLimiter(RateLimits(max_running=1)))
    with serving_rig(Rig(num_blocks=2048), codec, service=service) as server:
        yield server


def is_free(server: FakeServer, key: str) -> bool:
    return status_of(ask(server.port, sent_by(key, complete(b"free?", max_tokens=1)))) == 200


def test_a_stream_counts_as_running_until_it_ends(narrow: FakeServer) -> None:
    gate = threading.Event()
    narrow.rig.model.before_step = lambda: gate.wait(30)
    with narrow.connect() as connection:
        connection.sendall(sent_by("a", complete(b"long", max_tokens=3, stream=True)))
        assert connection.recv(12) == b"HTTP/1.1 200"
        answer = ask(narrow.port, sent_by("a", complete(b"second", max_tokens=1)))
        assert status_of(answer) == 429
        assert error_of(answer)["code"] == "rate_limit_exceeded"
        assert headers_of(answer)["retry-after"] == "1"
        gate.set()
        assert is_free(narrow, "b")
        while connection.recv(1 << 16):
            pass
    assert is_free(narrow, "a")


def test_a_client_that_leaves_releases_its_rate_limit(narrow: FakeServer) -> None:
    gate = threading.Event()
    narrow.rig.model.before_step = lambda: gate.wait(30)
    with narrow.connect() as connection:
        connection.sendall(sent_by("a", complete(b"long", max_tokens=300, stream=True)))
        assert connection.recv(12) == b"HTTP/1.1 200"
    gate.set()
    narrow.wait_until_idle()
    assert is_free(narrow, "a")


def test_a_request_that_fails_releases_its_rate_limit(narrow: FakeServer) -> None:
    for request, status in (
        (post_bytes("/v1/completions", b"{"), 400),
        (post_bytes("/v1/completions", b"{}", "text/plain"), 415),
        (post_bytes("/v1/nowhere", b"{}"), 404),
        (complete(b"x", max_tokens=1, model="none"), 404),
    ):
        assert status_of(ask(narrow.port, sent_by("a", request))) == status
    for _ in range(2):
        assert status_of(ask(narrow.port, sent_by("a", complete(b"x", max_tokens=1, stop_token_ids=[999])))) == 400
    assert is_free(narrow, "a")


def test_a_rate_limit_is_in_the_headers_and_enforced(codec: Codec) -> None:
    """Without keys, an address is a caller; operation routes are not counted."""
    service = Service("1", rate_limiter=RateLimiter(RateLimits(max_requests=2, seconds=3600)))
    with serving_rig(Rig(), codec, service=service) as server:
        answers = [ask(server.port, complete(b"x", max_tokens=1)) for _ in range(3)]
        health = ask(server.port, b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert [status_of(answer) for answer in answers] == [200, 200, 429]
    assert status_of(health) == 200
    told = [[headers_of(answer)[name] for name in RATE_HEADERS[:2]] for answer in answers]
    assert told == [["2", "1"], ["2", "0"], ["2", "0"]]
    assert 1700 < int(headers_of(answers[2])["retry-after"]) <= 1800
    assert error_of(answers[2])["message"] == "One key or address may send 2 requests in 3600 seconds: try again later."
    assert RATE_HEADERS[0] not in headers_of(health)


@pytest.fixture(scope="module")
def four(codec: Codec) -> Iterator[FakeServer]:
    """A server that runs four requests of each key at a time."""
    service = Service("1", keys=Keys(KeyRing(["a", "b"])), rate_limiter=RateLimiter(RateLimits(max_running=4)))
    with serving_rig(Rig(num_blocks=2048), codec, service=service) as server:
        yield server


def test_each_choice_counts_as_a_running_request(four: FakeServer) -> None:
    gate = threading.Event()
    four.rig.model.before_step = lambda: gate.wait(30)
    with four.connect() as connection:
        connection.sendall(sent_by("a", complete(b"three", max_tokens=3, stream=True, n=3)))
        assert connection.recv(12) == b"HTTP/1.1 200"
        two = ask(four.port, sent_by("a", complete(b"two", max_tokens=1, n=2)))
        assert status_of(two) == 429
        assert "each choice counts as one" in error_of(two)["message"]
        gate.set()
        while connection.recv(1 << 16):
            pass
    assert status_of(ask(four.port, sent_by("a", complete(b"four", max_tokens=1, n=4)))) == 200


@pytest.mark.parametrize(
    ("body", "param"), [({"n": 5}, "n"), ({"prompt": [[97]] * 5}, "prompt"), ({"prompt": [[97]] * 3, "n": 2}, "n")]
)
def test_more_choices_than_may_ever_run_are_an_error_that_names_the_field(
    four: FakeServer, body: dict[str, object], param: str
) -> None:
    asked = json.dumps({"prompt": [97], "max_tokens": 1, **body}).encode()
    answer = ask(four.port, sent_by("a", post_bytes("/v1/completions", asked)))
    assert (status_of(answer), error_of(answer)["param"]) == (400, param)
    assert "the 4 that one key or address may have running" in error_of(answer)["message"]


def test_many_inputs_to_embed_run_within_the_limit_and_are_released(four: FakeServer) -> None:
    most_at_once: list[int] = []
    four.rig.model.before_step = lambda: most_at_once.append(len(four.engine.statuses()))
    asked = json.dumps({"input": [[97 + index] for index in range(20)]}).encode()
    assert status_of(ask(four.port, sent_by("b", post_bytes("/v1/embeddings", asked)))) == 200
    assert max(most_at_once) <= 4
    assert status_of(ask(four.port, sent_by("b", complete(b"four", max_tokens=1, n=4)))) == 200
