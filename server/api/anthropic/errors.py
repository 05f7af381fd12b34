"""Errors in Anthropic's form, and the class of routes that answer with them."""

from typing import Any

from fastapi import status
from fastapi.routing import APIRoute
from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from server.api.core.errors.api_errors import APIError, InvalidRequestError
from server.engine.interface import JsonObject

TYPES = {
    status.HTTP_401_UNAUTHORIZED: "authentication_error",
    status.HTTP_403_FORBIDDEN: "permission_error",
    status.HTTP_404_NOT_FOUND: "not_found_error",
    status.HTTP_408_REQUEST_TIMEOUT: "timeout_error",
    status.HTTP_413_CONTENT_TOO_LARGE: "request_too_large",
    status.HTTP_429_TOO_MANY_REQUESTS: "rate_limit_error",
    status.HTTP_503_SERVICE_UNAVAILABLE: "overloaded_error",
    status.HTTP_504_GATEWAY_TIMEOUT: "timeout_error",
}

_STRING = {"type": "string"}
_ERROR = {
    "description": "An error in Anthropic's form",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["type", "error", "request_id"],
                "properties": {
                    "type": {"const": "error"},
                    "error": {
                        "type": "object",
                        "required": ["type", "message"],
                        "properties": {"type": _STRING, "message": _STRING},
                    },
                    "request_id": _STRING,
                },
            }
        }
    },
}
ERRORS: dict[int | str, dict[str, Any]] = {"4XX": _ERROR, "5XX": _ERROR}  # for the OpenAPI description


def error_body(error: APIError, request_id: str) -> JsonObject:
    is_server_error = error.status_code >= status.HTTP_500_INTERNAL_SERVER_ERROR
    kind = TYPES.get(error.status_code, "api_error" if is_server_error else "invalid_request_error")
    body: JsonObject = {"type": kind, "message": error.message}
    if error.code is not None:
        body["details"] = {"error_code": error.code}
    return {"type": "error", "error": body, "request_id": request_id}


class ThreadError(InvalidRequestError):
    """The request asks the server to store a conversation; clients that know the code then send all of it each time."""

    code = "thread_unsupported_request"


class AnthropicRoute(APIRoute):
    """A route whose errors have Anthropic's form, and whose responses have Anthropic's header ``request-id``."""

    error_body = staticmethod(error_body)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["request-id"] = scope["state"]["request_id"]
            await send(message)

        await super().handle(scope, receive, send_with_id)
