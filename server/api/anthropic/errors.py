"""Errors in Anthropic's form, for the routes that speak it."""

from fastapi import status
from fastapi.routing import APIRoute
from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from server.api.conversation import JsonObject
from server.api.errors import APIError

TYPES = {
    status.HTTP_401_UNAUTHORIZED: "authentication_error",
    status.HTTP_403_FORBIDDEN: "permission_error",
    status.HTTP_404_NOT_FOUND: "not_found_error",
    status.HTTP_413_CONTENT_TOO_LARGE: "request_too_large",
    status.HTTP_429_TOO_MANY_REQUESTS: "rate_limit_error",
    status.HTTP_503_SERVICE_UNAVAILABLE: "overloaded_error",
    status.HTTP_504_GATEWAY_TIMEOUT: "timeout_error",
}


def error_body(error: APIError, request_id: str) -> JsonObject:
    is_own_fault = error.status_code >= status.HTTP_500_INTERNAL_SERVER_ERROR
    kind = TYPES.get(error.status_code, "api_error" if is_own_fault else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}, "request_id": request_id}


class AnthropicRoute(APIRoute):
    """A route whose errors are Anthropic's, and whose answers carry the request's id as Anthropic's do, too."""

    error_body = staticmethod(error_body)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["request-id"] = scope["state"]["request_id"]
            await send(message)

        await super().handle(scope, receive, send_with_id)
