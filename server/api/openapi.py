"""What the server says of itself at ``/openapi.json``."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
ERROR = {
    "description": "An error in OpenAI's form",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"description": "The answer, whole or as server-sent events", "content": {"text/event-stream": {}}}
}  # the responses of a route that streams when it is asked to


def describe(app: FastAPI) -> None:
    """Let the description of ``app`` name the errors that it gives, instead of FastAPI's own, which it does not."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _with_errors(get_openapi(title=app.title, version=app.version, routes=app.routes))
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _with_errors(schema: dict[str, Any]) -> dict[str, Any]:
    for operations in schema["paths"].values():
        for operation in operations.values():
            responses = operation["responses"]
            responses.pop("422", None)
            for status in ("4XX", "5XX"):
                responses.setdefault(status, ERROR)
    schemas = schema.setdefault("components", {}).setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas["Error"] = ERROR_SCHEMA
    return schema
