"""Retried failures, and pauses before retries."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from client import (
    APIConnectionError,
    APITimeoutError,
    RateLimitError,
    ServerError,
    ServerUnavailableError,
    StreamInterruptedError,
)
from client.retries import Retries
from tests.client.bodies import COMPLETION, REFUSAL, chunk
from tests.client.conftest import AnyClient

Step = httpx.Response | Exception


def script(*steps: Step) -> Callable[[httpx.Request], httpx.Response]:
    """Return a handler that replies with one step after the other."""
    left = list(steps)

    def handle(request: httpx.Request) -> httpx.Response:
        step = left.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    return handle


def busy(status: int = 503, **headers: str) -> httpx.Response:
    return httpx.Response(
        status, json=REFUSAL, headers={name.replace("_", "-"): text for name, text in headers.items()}
    )


def answer() -> httpx.Response:
    return httpx.Response(200, json=COMPLETION)


@pytest.mark.parametrize(
    "failure",
    [
        lambda: busy(429),
        lambda: busy(503),
        lambda: httpx.ConnectError("refused"),
        lambda: httpx.ConnectTimeout("slow"),
        lambda: httpx.RemoteProtocolError("Server disconnected without sending a response."),
    ],
)
def test_temporary_failures_are_retried(any_client: AnyClient, failure: Callable[[], Step]) -> None:
    any_client.handler = script(failure(), failure(), answer())
    assert any_client("complete", "Once").text == "Once upon"
    assert [request.content for request in any_client.requests] == [b'{"prompt":"Once"}'] * 3


def test_pauses_double_with_jitter(any_client: AnyClient) -> None:
    any_client.handler = script(busy(), busy(), busy(), busy(), answer())
    any_client("complete", "Once", client={"retries": Retries(4, first_seconds=1, max_seconds=4)})
    for slept, longest in zip(any_client.slept, [1, 2, 4, 4], strict=True):
        assert longest / 2 <= slept <= longest


def test_the_last_failure_is_raised(any_client: AnyClient) -> None:
    any_client.handler = script(busy(429), httpx.ConnectError("refused"), busy(503, x_request_id="r1", retry_after="5"))
    with pytest.raises(ServerUnavailableError) as raised:
        any_client("complete", "Once")
    assert (raised.value.status, raised.value.request_id, raised.value.retry_after) == (503, "r1", 5.0)
    assert len(any_client.slept) == 2


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (lambda: busy(500), ServerError),
        (lambda: busy(504), ServerError),
        (lambda: busy(429, x_should_retry="false"), RateLimitError),
        (lambda: busy(503, retry_after="3600"), ServerUnavailableError),
        (lambda: httpx.ReadTimeout("slow"), APITimeoutError),  # the server may still be generating
        (lambda: httpx.UnsupportedProtocol("gopher"), APIConnectionError),
    ],
)
def test_other_failures_are_raised_at_once(any_client: AnyClient, failure: Callable[[], Step], error: type) -> None:
    any_client.handler = script(failure())
    with pytest.raises(error):
        any_client("complete", "Once")
    assert any_client.slept == []


def test_retry_after_is_honoured(any_client: AnyClient) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    any_client.handler = script(busy(retry_after="2.5"), busy(retry_after=date), answer())
    any_client("complete", "Once")
    assert any_client.slept[0] == 2.5
    assert 0 < any_client.slept[1] <= 30


@pytest.mark.parametrize("value", ["soon", "nan", "inf", "", f"Mon, 01 Jan 2020 00:00:00 +{'9' * 20}"])
def test_invalid_retry_after_is_ignored(any_client: AnyClient, value: str) -> None:
    any_client.handler = script(busy(retry_after=value), answer())
    any_client("complete", "Once")
    assert 0.125 <= any_client.slept[0] <= 0.25


def test_a_stream_is_retried_before_its_first_byte_only(any_client: AnyClient) -> None:
    cut = httpx.Response(200, content=chunk("Once"), headers={"content-type": "text/event-stream"})
    any_client.handler = script(busy(429), cut)
    with pytest.raises(StreamInterruptedError):
        any_client.stream("stream", "Once")
    assert len(any_client.requests) == 2
