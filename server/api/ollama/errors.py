"""Errors in Ollama's form, and the class of routes that answer with them."""

from typing import Any

from fastapi import status
from fastapi.routing import APIRoute

from server.api.core.errors.api_errors import APIError, InvalidRequestError
from server.engine.interface import JsonObject

ERROR = {
    "description": "An error in Ollama's form",
    "content": {
        "application/json": {
            "schema": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
        }
    },
}
ERRORS: dict[int | str, dict[str, Any]] = {"4XX": ERROR, "5XX": ERROR}  # for the OpenAPI description


class ModelManagementError(InvalidRequestError):
    """The request asks the server to change its models."""

    status_code = status.HTTP_501_NOT_IMPLEMENTED


def error_body(error: APIError, _request_id: str = "") -> JsonObject:
    return {"error": error.message}


class OllamaRoute(APIRoute):
    """A route whose errors have Ollama's form."""

    error_body = staticmethod(error_body)
