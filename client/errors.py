"""Exceptions that a call may raise.

GreenroomError
├── APIConnectionError             no server responded, or the connection failed before the response
│   └── APITimeoutError            connecting, sending or waiting timed out
├── APIStatusError                 the server returned an error status
│   ├── BadRequestError            400, 422
│   ├── AuthenticationError        401
│   ├── PermissionDeniedError      403
│   ├── NotFoundError              404
│   ├── RateLimitError             429
│   └── ServerError                500 and above
│       └── ServerUnavailableError 503
├── InvalidReplyError              the reply is not valid for a Greenroom server
└── StreamError                    a stream did not complete
    ├── StreamFailedError          the server reported that generation failed
    ├── StreamInterruptedError     the connection ended before the stream did
    └── StreamClosedError          the stream was read to its end, or closed, before
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

import httpx

MAX_QUOTED = 200  # characters of a response body that is not JSON


class GreenroomError(Exception):
    """Base class of all exceptions of this package."""


class APIConnectionError(GreenroomError):
    """No server responded, or the connection failed before the response."""


class APITimeoutError(APIConnectionError):
    """Connecting, sending or waiting timed out."""


class InvalidReplyError(GreenroomError):
    """The reply is not valid for a Greenroom server."""


@dataclass(frozen=True)
class ErrorBody:
    """The error body of a server, in OpenAI's form: ``{"error": {"message", "type", "param", "code"}}``."""

    message: str
    type: str | None = None
    param: str | None = None
    code: str | None = None

    @classmethod
    def parse(cls, body: object) -> ErrorBody | None:
        """Return the error in a JSON body, or None."""
        match body:
            case {"error": {"message": str(message)} as error}:
                others = (error.get(name) for name in ("type", "param", "code"))
                return cls(message, *(None if word is None else str(word) for word in others))
            case _:
                return None


class _ServerMessageError(GreenroomError):
    """An error with the server's ``message``, ``type``, ``param`` and ``code``."""

    def __init__(self, body: ErrorBody):
        super().__init__(body.message)
        self.message, self.type = body.message, body.type
        self.param, self.code = body.param, body.code


class APIStatusError(_ServerMessageError):
    """The server returned an error status; ``retry_after`` is in seconds."""

    def __init__(self, status: int, body: ErrorBody, headers: Mapping[str, str]):
        super().__init__(body)
        self.status = status
        self.request_id = headers.get("x-request-id")
        self.retry_after = _seconds(headers.get("retry-after"))


class BadRequestError(APIStatusError):
    """The request is invalid; ``param`` names the field to change."""


class AuthenticationError(APIStatusError):
    """The API key is missing or wrong."""


class PermissionDeniedError(APIStatusError):
    """The API key does not permit this request."""


class NotFoundError(APIStatusError):
    """The model, expert or route does not exist."""


class RateLimitError(APIStatusError):
    """The queue of the server is full, or a rate limit is exceeded."""


class ServerError(APIStatusError):
    """The server failed."""


class ServerUnavailableError(ServerError):
    """The model is loading, or the server is shutting down."""


class StreamError(GreenroomError):
    """A stream did not complete."""


class StreamFailedError(_ServerMessageError, StreamError):
    """The server reported that generation failed."""


class StreamInterruptedError(StreamError):
    """The connection ended before the stream did."""


class StreamClosedError(StreamError):
    """The stream was read to its end, or closed, before. Call the method again for a new stream."""


_BY_STATUS: Mapping[int, type[APIStatusError]] = {
    HTTPStatus.BAD_REQUEST: BadRequestError,
    HTTPStatus.UNPROCESSABLE_ENTITY: BadRequestError,
    HTTPStatus.UNAUTHORIZED: AuthenticationError,
    HTTPStatus.FORBIDDEN: PermissionDeniedError,
    HTTPStatus.NOT_FOUND: NotFoundError,
    HTTPStatus.TOO_MANY_REQUESTS: RateLimitError,
    HTTPStatus.SERVICE_UNAVAILABLE: ServerUnavailableError,
}


def status_error(response: httpx.Response) -> APIStatusError:
    """Return the exception for an error response whose body has been read."""
    other = ServerError if response.is_server_error else APIStatusError
    kind = _BY_STATUS.get(response.status_code, other)
    body = ErrorBody.parse(_json_or_none(response)) or ErrorBody(_summary(response))
    return kind(response.status_code, body, response.headers)


def transport_error(error: httpx.HTTPError) -> APIConnectionError:
    """Return the exception for a transport failure."""
    url = error.request.url
    server = f"{url.scheme}://{url.netloc.decode()}"  # without a password
    if isinstance(error, httpx.TimeoutException):
        return APITimeoutError(f"{server}{url.path} timed out: {_reason(error)}")
    if isinstance(error, httpx.ConnectError):
        return APIConnectionError(f"no server responds at {server}: {_reason(error)}")
    return APIConnectionError(f"the connection to {server} failed: {_reason(error)}")


@contextmanager
def stream_errors() -> Iterator[None]:
    """Raise httpx's errors of a stream as errors of this package."""
    try:
        yield
    except httpx.TimeoutException as error:
        raise transport_error(error) from error
    except httpx.HTTPError as error:
        raise StreamInterruptedError(f"the connection ended before the stream did: {_reason(error)}") from error


def _json_or_none(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return None


def _summary(response: httpx.Response) -> str:
    text = " ".join(response.text.split())[:MAX_QUOTED]
    return f"{response.status_code} {response.reason_phrase}" + (f": {text}" if text else "")


def _reason(error: httpx.HTTPError) -> str:
    return str(error) or type(error).__name__


def _seconds(retry_after: str | None) -> float | None:
    """Parse ``Retry-After``, which is seconds or a date; None if it is neither."""
    if retry_after is None:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            at = parsedate_to_datetime(retry_after)
        except (ValueError, OverflowError):
            return None
        seconds = (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if seconds < float("inf") else None
