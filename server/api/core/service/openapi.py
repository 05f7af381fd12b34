"""The OpenAPI description at ``/openapi.json``."""

from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.routing import BaseRoute

from server.api.core.replies.json_lines import JSON_LINES
from server.api.core.service.body import BodyReader

REF_TEMPLATE = "#/components/schemas/{model}"
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
# The responses of a route that streams on request.
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"description": "The complete answer, or server-sent events", "content": {"text/event-stream": {}}}
}


# The same for streams of lines.
JSON_STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"description": "The complete answer, or a line of JSON for each part of it", "content": {JSON_LINES: {}}}
}


def describe(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Make the description of ``app`` cover what FastAPI does not know: the bodies and the errors of ``routes``."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            _add_bodies(schema, routes)
            _add_errors(schema)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def body_model(route: APIRoute) -> type[BaseModel] | None:
    """Return the model of a route's body, if it has one."""
    readers = (each.call for each in route.dependant.dependencies)
    return next((reader.model for reader in readers if isinstance(reader, BodyReader)), None)


def _add_bodies(schema: dict[str, Any], routes: Sequence[BaseRoute]) -> None:
    bodies = list(_bodies(routes))
    references, definitions = models_json_schema(
        [(model, "validation") for _, model in bodies], ref_template=REF_TEMPLATE
    )
    for route, model in bodies:
        content = {"application/json": {"schema": references[model, "validation"]}}
        for method in route.methods or ():
            schema["paths"][route.path][method.lower()]["requestBody"] = {"required": True, "content": content}
    schema.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])


def _bodies(routes: Sequence[BaseRoute]) -> Iterator[tuple[APIRoute, type[BaseModel]]]:
    for route in routes:
        if isinstance(route, APIRoute) and (model := body_model(route)) is not None:
            yield route, model


def _add_errors(schema: dict[str, Any]) -> None:
    for operations in schema["paths"].values():
        for operation in operations.values():
            responses = operation["responses"]
            responses.pop("422", None)  # FastAPI describes it, but this server answers 400
            for status in ("4XX", "5XX"):
                responses.setdefault(status, ERROR)
    schemas = schema.setdefault("components", {}).setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas["Error"] = ERROR_SCHEMA
