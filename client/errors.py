"""What a call may raise.

GreenroomError
├── APIConnectionError             no server answered, or the connection broke before an answer
│   └── APITimeoutError            it took too long
├── APIStatusError                 the server refused; what it said is in its attributes
│   ├── BadRequestError            400, 422
│   ├── AuthenticationError        401
│   ├── PermissionDeniedError      403
│   ├── NotFoundError              404
│   ├── RateLimitError             429
│   └── ServerError                500 and above
│       └── ServerUnavailableError 503
├── InvalidReplyError              the answer is not what a Greenroom server would say
└── StreamError                    after the first byte of a stream
    ├── StreamFailedError          the server said that the reply failed
    ├── StreamInterruptedError     the connection ended before the stream did
    └── StreamClosedError          it was read to its end, or closed, before
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

MAX_QUOTED = 200  # characters of an answer that is no JSON


class GreenroomError(Exception):
    """Anything that a call of this package raises."""


class APIConnectionError(GreenroomError):
    """No server answered, or the connection broke before an answer."""


class APITimeoutError(APIConnectionError):
    """Connecting, sending or waiting took longer than it may."""


class InvalidReplyError(GreenroomError):
    """The answer is not what a Greenroom server would say."""


@dataclass(frozen=True)
class Complaint:
    """What a server says is wrong, in OpenAI's form: ``{"error": {"message", "type", "param", "code"}}``."""

    message: str
    type: str | None = None
    param: str | None = None
    code: str | None = None

    @classmethod
    def of(cls, body: object) -> Complaint | None:
        """The complaint that a body holds, or None."""
        match body:
            case {"error": {"message": str(message)} as error}:
                others = (error.get(name) for name in ("type", "param", "code"))
                return cls(message, *(None if word is None else str(word) for word in others))
            case _:
                return None


class _QuotedError(GreenroomError):
    """The server says what is wrong: ``message``, ``type``, ``param`` and ``code`` are its words."""

    def __init__(self, complaint: Complaint):
        super().__init__(complaint.message)
        self.message, self.type = complaint.message, complaint.type
        self.param, self.code = complaint.param, complaint.code


class APIStatusError(_QuotedError):
    """The server refused; ``retry_after`` is in seconds."""

    def __init__(self, status: int, complaint: Complaint, headers: Mapping[str, str]):
        super().__init__(complaint)
        self.status = status
        self.request_id = headers.get("x-request-id")
        self.retry_after = _seconds(headers.get("retry-after"))


class BadRequestError(APIStatusError):
    """The request can never be answered as it is; ``param`` names the field to change."""


class AuthenticationError(APIStatusError):
    """No key, or a wrong one."""


class PermissionDeniedError(APIStatusError):
    """The key does not open this."""


class NotFoundError(APIStatusError):
    """No such model, expert or route."""


class RateLimitError(APIStatusError):
    """The server has as much to do as it may, for everybody or for this key."""


class ServerError(APIStatusError):
    """A fault of the server."""


class ServerUnavailableError(ServerError):
    """The model is loading, or the server is stopping."""


class StreamError(GreenroomError):
    """A stream did not come to its end."""


class StreamFailedError(_QuotedError, StreamError):
    """The server said that the reply failed."""


class StreamInterruptedError(StreamError):
    """The connection ended before the stream did."""


class StreamClosedError(StreamError):
    """The stream was read to its end, or closed, before: ask again for another."""


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
    """The error that a response is, whose body has been read."""
    other = ServerError if response.is_server_error else APIStatusError
    kind = _BY_STATUS.get(response.status_code, other)
    complaint = Complaint.of(_json_or_none(response)) or Complaint(_described(response))
    return kind(response.status_code, complaint, response.headers)


def transport_error(error: httpx.HTTPError) -> APIConnectionError:
    """The error that a failure to exchange a request is."""
    url = error.request.url
    server = f"{url.scheme}://{url.netloc.decode()}"  # without a password
    if isinstance(error, httpx.TimeoutException):
        return APITimeoutError(f"{server}{url.path} took too long: {_reason(error)}")
    if isinstance(error, httpx.ConnectError):
        return APIConnectionError(f"no server answers at {server}: {_reason(error)}")
    return APIConnectionError(f"the connection to {server} broke: {_reason(error)}")


@contextmanager
def stream_errors() -> Iterator[None]:
    """Raise what breaks a stream as an error of this package."""
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


def _described(response: httpx.Response) -> str:
    text = " ".join(response.text.split())[:MAX_QUOTED]
    return f"{response.status_code} {response.reason_phrase}" + (f": {text}" if text else "")


def _reason(error: httpx.HTTPError) -> str:
    return str(error) or type(error).__name__


def _seconds(retry_after: str | None) -> float | None:
    """``Retry-After`` as a number of seconds, which may come as a date; None if it is neither."""
    if retry_after is None:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            at = parsedate_to_datetime(retry_after)
        except ValueError:
            return None
        seconds = (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if seconds < float("inf") else None
