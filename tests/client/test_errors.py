"""Exceptions for failures of servers and networks."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

import client.errors
from client import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    GreenroomError,
    InvalidReplyError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ServerError,
    ServerUnavailableError,
    StreamFailedError,
    StreamInterruptedError,
)
from client.retries import Retries
from tests.client.bodies import REFUSAL, chunk, event
from tests.client.conftest import AnyClient

ONCE = {"retries": Retries(0)}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadRequestError),
        (422, BadRequestError),
        (401, AuthenticationError),
        (403, PermissionDeniedError),
        (404, NotFoundError),
        (409, APIStatusError),
        (429, RateLimitError),
        (500, ServerError),
        (503, ServerUnavailableError),
        (504, ServerError),
    ],
)
def test_each_status_has_its_error(any_client: AnyClient, status: int, kind: type[APIStatusError]) -> None:
    any_client.handler = lambda _: httpx.Response(status, json=REFUSAL, headers={"x-request-id": "r1"})
    with pytest.raises(GreenroomError) as raised:
        any_client("complete", "Once", client=ONCE)
    error = raised.value
    assert type(error) is kind
    assert str(error) == error.message == "'top_p' is wrong."
    assert (error.type, error.param, error.code) == ("invalid_request_error", "top_p", "too_high")
    assert (error.status, error.request_id, error.retry_after) == (status, "r1", None)


def test_an_error_body_that_is_not_json_is_quoted_and_truncated(any_client: AnyClient) -> None:
    any_client.handler = lambda _: httpx.Response(502, text="<html>\n" + "bad gateway " * 100)
    with pytest.raises(ServerError, match="502 Bad Gateway: <html> bad gateway") as raised:
        any_client("models", client=ONCE)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("body", [b"", b"[]", b'{"choices": 3}', b'{"id": "x", "choices": [{}]}', b"\xff"])
def test_a_reply_of_another_shape_is_an_error(any_client: AnyClient, body: bytes) -> None:
    any_client.handler = lambda _: httpx.Response(200, content=body)
    for name, arguments in (("complete", ["Once"]), ("chat", ["Hi"]), ("models", []), ("experts", []), ("health", [])):
        with pytest.raises(InvalidReplyError, match="Greenroom server"):
            any_client(name, *arguments)


def test_a_port_without_a_listener(any_client: AnyClient, free_port: int) -> None:
    any_client.base_url = f"http://127.0.0.1:{free_port}"
    with pytest.raises(APIConnectionError, match=f"no server responds at {any_client.base_url}: ") as raised:
        any_client("models")
    assert len(any_client.slept) == 2
    assert isinstance(raised.value.__cause__, httpx.ConnectError)


def test_an_invalid_url(any_client: AnyClient) -> None:
    for wrong in ("localhost:8000", "ftp://host", "http://", "http://host:port"):
        any_client.base_url = wrong
        with pytest.raises(ValueError, match="is not a valid URL"):
            any_client("models")


def test_an_error_in_a_stream_is_raised_after_its_tokens(any_client: AnyClient) -> None:
    any_client.handler = lambda _: httpx.Response(200, content=chunk("Once") + event(REFUSAL) + event("[DONE]"))
    with pytest.raises(StreamFailedError, match="'top_p' is wrong") as raised:
        any_client.stream("stream", "Once")
    assert raised.value.param == "top_p"


class Broken(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that ends with an error."""

    def __init__(self, error: Exception):
        self._error = error

    def __iter__(self) -> Iterator[bytes]:
        yield chunk("Once")
        raise self._error

    async def __aiter__(self):
        yield chunk("Once")
        raise self._error


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (httpx.RemoteProtocolError("peer closed connection"), StreamInterruptedError),
        (httpx.ReadError("reset"), StreamInterruptedError),
        (httpx.ReadTimeout("slow"), APITimeoutError),
    ],
)
def test_a_stream_that_breaks_is_not_retried(any_client: AnyClient, failure: Exception, kind: type[Exception]) -> None:
    any_client.handler = lambda _: httpx.Response(200, stream=Broken(failure))
    with pytest.raises(kind):
        any_client.stream("stream", "Once")
    assert len(any_client.requests) == 1


@pytest.mark.parametrize("body", [b"data: {\n\n", b"data: []\n\n", b'data: {"choices": [3]}\n\n'])
def test_a_stream_of_another_shape_is_an_error(any_client: AnyClient, body: bytes) -> None:
    any_client.handler = lambda _: httpx.Response(200, content=body)
    with pytest.raises(InvalidReplyError):
        any_client.stream("stream", "Once")


def test_all_errors_are_exported_and_share_a_base_class() -> None:
    errors = [kind for name, kind in vars(client.errors).items() if name.endswith("Error") and name[0] != "_"]
    assert all(issubclass(error, GreenroomError) for error in errors)
    assert {error.__name__ for error in errors} <= set(client.__all__)
