"""Which failures are asked again, and after how long."""

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
from tests.client.conftest import Asker

Step = httpx.Response | Exception


def script(*steps: Step) -> Callable[[httpx.Request], httpx.Response]:
    """Answer with one step after the other."""
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
def test_what_passes_is_asked_again(asker: Asker, failure: Callable[[], Step]) -> None:
    asker.handler = script(failure(), failure(), answer())
    assert asker("complete", "Once").text == "Once upon"
    assert [request.content for request in asker.requests] == [b'{"prompt":"Once"}'] * 3


def test_pauses_double_with_jitter(asker: Asker) -> None:
    asker.handler = script(busy(), busy(), busy(), busy(), answer())
    asker("complete", "Once", client={"retries": Retries(4, first_seconds=1, max_seconds=4)})
    for slept, longest in zip(asker.slept, [1, 2, 4, 4], strict=True):
        assert longest / 2 <= slept <= longest


def test_the_last_failure_is_raised(asker: Asker) -> None:
    asker.handler = script(busy(429), httpx.ConnectError("refused"), busy(503, x_request_id="r1", retry_after="5"))
    with pytest.raises(ServerUnavailableError) as raised:
        asker("complete", "Once")
    assert (raised.value.status, raised.value.request_id, raised.value.retry_after) == (503, "r1", 5.0)
    assert len(asker.slept) == 2


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (lambda: busy(500), ServerError),
        (lambda: busy(504), ServerError),
        (lambda: busy(429, x_should_retry="false"), RateLimitError),
        (lambda: busy(503, retry_after="3600"), ServerUnavailableError),
        (lambda: httpx.ReadTimeout("slow"), APITimeoutError),  # the server may be at it still
        (lambda: httpx.UnsupportedProtocol("gopher"), APIConnectionError),
    ],
)
def test_what_does_not_pass_is_raised_at_once(asker: Asker, failure: Callable[[], Step], error: type) -> None:
    asker.handler = script(failure())
    with pytest.raises(error):
        asker("complete", "Once")
    assert asker.slept == []


def test_retry_after_is_honoured(asker: Asker) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    asker.handler = script(busy(retry_after="2.5"), busy(retry_after=date), answer())
    asker("complete", "Once")
    assert asker.slept[0] == 2.5
    assert 0 < asker.slept[1] <= 30


@pytest.mark.parametrize("value", ["soon", "nan", "inf", ""])
def test_retry_after_without_sense_is_no_pause(asker: Asker, value: str) -> None:
    asker.handler = script(busy(retry_after=value), answer())
    asker("complete", "Once")
    assert 0.125 <= asker.slept[0] <= 0.25


def test_a_stream_is_asked_again_before_its_first_byte_only(asker: Asker) -> None:
    cut = httpx.Response(200, content=chunk("Once"), headers={"content-type": "text/event-stream"})
    asker.handler = script(busy(429), cut)
    with pytest.raises(StreamInterruptedError):
        asker.stream("stream", "Once")
    assert len(asker.requests) == 2
