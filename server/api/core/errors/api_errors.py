"""Errors that clients see, and the translation of every exception to one of them.

APIError
├── InvalidRequestError
│   ├── ContextLengthError
│   ├── ModelNotFoundError
│   ├── AbsentRouteError
│   ├── ResponseNotFoundError
│   ├── BodyTimeoutError
│   ├── BodyTooLargeError
│   ├── ExpertNotFoundError
│   └── UnsupportedBodyError
├── InvalidKeyError
├── ForbiddenError
├── ClientDisconnectedError
├── RateLimitError
├── ServiceUnavailableError
│   └── DrainingError
├── TimeLimitError
└── InternalError
    └── ResponseStoreError
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from fastapi import status
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from server.api.core.errors.validation import first_problem
from server.engine.interface import (
    DeadlineExceededError,
    EngineError,
    EngineUnavailableError,
    PromptTooLongError,
    QueueFullError,
    RequestRefusedError,
)

RETRY_AFTER_SECONDS = 1


class APIError(Exception):
    """An error response; ``body`` has OpenAI's form."""

    status_code = status.HTTP_500_INTERNAL_SERVER_ERROR
    type = "server_error"
    code: str | None = None

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.headers: dict[str, str] = {}

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class InvalidRequestError(APIError):
    """The request is invalid; ``param`` names the field to change."""

    status_code = status.HTTP_400_BAD_REQUEST
    type = "invalid_request_error"


class ContextLengthError(InvalidRequestError):
    """Prompt and completion together do not fit the model."""

    code = "context_length_exceeded"


class ModelNotFoundError(InvalidRequestError):
    """The server has no model of that name."""

    status_code = status.HTTP_404_NOT_FOUND
    code = "model_not_found"


class ResponseNotFoundError(InvalidRequestError):
    """The caller has no such stored response."""

    status_code = status.HTTP_404_NOT_FOUND


class AbsentRouteError(InvalidRequestError):
    """A dialect has the route, but this server has not."""

    status_code = status.HTTP_404_NOT_FOUND
    code = "unknown_url"  # OpenAI's


class BodyTimeoutError(InvalidRequestError):
    """The body arrived too slowly."""

    status_code = status.HTTP_408_REQUEST_TIMEOUT

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.headers = {"Connection": "close"}


class BodyTooLargeError(InvalidRequestError):
    """The body is longer than the limit."""

    status_code = 413  # the name of Starlette's constant depends on its version


class UnsupportedBodyError(InvalidRequestError):
    """The body has a content encoding, or a type other than JSON."""

    status_code = status.HTTP_415_UNSUPPORTED_MEDIA_TYPE


class InvalidKeyError(APIError):
    """The API key is missing or unknown; the message never contains it."""

    status_code = status.HTTP_401_UNAUTHORIZED
    type = "invalid_request_error"
    code = "invalid_api_key"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.headers = {"WWW-Authenticate": "Bearer"}


class ForbiddenError(APIError):
    """The caller is not allowed to do this."""

    status_code = status.HTTP_403_FORBIDDEN
    type = "permission_error"
    code = "forbidden"


class ExpertNotFoundError(InvalidRequestError):
    """The model has no such expert."""

    status_code = status.HTTP_404_NOT_FOUND
    code = "expert_not_found"


class ClientDisconnectedError(APIError):
    """The client left before the response was ready; no one receives this error."""

    status_code = 499  # nginx's "client closed request"
    code = "client_disconnected"


class RateLimitError(APIError):
    """The queue is full, or the caller has reached a rate limit."""

    status_code = status.HTTP_429_TOO_MANY_REQUESTS
    type = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(
        self,
        message: str,
        retry_after_seconds: int = RETRY_AFTER_SECONDS,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(message)
        self.headers = {"Retry-After": str(retry_after_seconds), **headers}


class ServiceUnavailableError(APIError):
    """The model is loading or dead, or the server is draining or at a limit."""

    status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    code = "service_unavailable"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}


class DrainingError(ServiceUnavailableError):
    """The server is draining. The connection is closed, so that a retry may reach another server."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.headers["Connection"] = "close"


class TimeLimitError(APIError):
    """The request was not done within its ``timeout``."""

    status_code = status.HTTP_504_GATEWAY_TIMEOUT
    type = "timeout_error"
    code = "timeout"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.headers = {"x-should-retry": "false"}  # OpenAI's clients would retry, and reach the same limit


class InternalError(APIError):
    """The server failed."""


class ResponseStoreError(InternalError):
    """Stored responses can't be read or written."""


def api_error(exc: Exception) -> APIError:
    """Return the error that a client sees for an exception; that for an unexpected exception reveals no details."""
    match exc:
        case APIError():
            error = exc
        case RequestValidationError():
            error = InvalidRequestError(*first_problem(exc.errors()))
        case HTTPException():
            error = http_error(exc.status_code, exc.detail, exc.headers)
        case PromptTooLongError():
            error = ContextLengthError(str(exc), exc.param)
        case RequestRefusedError():
            error = InvalidRequestError(str(exc), exc.param)
        case QueueFullError():
            error = RateLimitError(str(exc))
        case DeadlineExceededError():
            error = TimeLimitError(str(exc))
        case EngineUnavailableError():
            error = ServiceUnavailableError(str(exc))
        case EngineError():
            error = InternalError(str(exc))
        case _:
            error = InternalError("The server failed to answer: see its log.")
    return error


def http_error(status_code: int, detail: str, headers: Mapping[str, str] | None) -> APIError:
    """Return the error for what the web framework refuses, such as an unknown route or a wrong method."""
    is_server_error = status_code >= status.HTTP_500_INTERNAL_SERVER_ERROR
    error = InternalError(detail) if is_server_error else InvalidRequestError(detail)
    error.status_code = status_code
    error.headers = dict(headers or {})
    return error
