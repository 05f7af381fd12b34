"""Bodies of requests: read within limits, parsed and validated off the event loop where that takes a while.

Every route that takes a body is a ``BodyRoute``: ``APIRouter(route_class=BodyRoute)``.
"""

import asyncio
import json
import re
from collections.abc import Callable, Coroutine
from typing import Any, cast

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from server.api.auth import Guard
from server.api.dependencies import service_of
from server.api.errors import (
    BodyTimeoutError,
    BodyTooLargeError,
    ClientDisconnectedError,
    InvalidRequestError,
    UnsupportedBodyError,
)
from server.api.json_reader import FieldError, JSONError, read_json
from server.api.openai.fields import is_encodable
from server.api.room import Part
from server.api.validation import NOT_AN_OBJECT, quote
from server.heap import shared_trimmer

MAX_BODY_BYTES = 24 << 20  # room for the images of a request, and as much text as anybody can mean
SMALL_BODY_BYTES = 16 << 10  # is parsed within a few milliseconds, so it needs no thread
LARGE_BODY_BYTES = 1 << 20  # more are parsed one at a time, for parsing takes several times their bytes
BODY_GRACE_SECONDS = 30.0  # for a body to come, and more for each piece that has come
BODY_BYTES_PER_SECOND = 16 << 10
SURROGATE = re.compile(rb"\\u[dD]")


class BodyRoute(APIRoute):
    """A route whose guards are asked before its body is read, and whose body is read here, not by FastAPI."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        guards = [each.dependency for each in self.dependencies if isinstance(each.dependency, Guard)]
        model = None if self.body_field is None else cast("type[BaseModel]", self.body_field.field_info.annotation)

        async def handle_body(request: Request) -> Response:
            service = await service_of(request)
            for guard in guards:
                await guard(request, service)
            if model is None:
                return await handle(request)
            ready = _ReadyRequest(request.scope, request.receive)
            with service.body_room.part() as part:
                try:
                    ready.ready_body = await _read(request, model, part, service.large_bodies)
                    return await handle(ready)
                finally:
                    if part.num_taken > LARGE_BODY_BYTES:
                        shared_trimmer().soon()

        return handle_body


class _ReadyRequest(Request):
    """What FastAPI is given: a request whose body has become a model, which it takes as it is."""

    ready_body: BaseModel

    async def body(self) -> bytes:
        return b"{}"  # there is one

    async def json(self) -> BaseModel:
        return self.ready_body


async def _read(request: Request, model: type[BaseModel], part: Part, large_bodies: asyncio.Lock) -> BaseModel:
    check_type(request)
    data = await read_body(request, part)
    if len(data) <= SMALL_BODY_BYTES:
        return parse(data, model)
    if len(data) <= LARGE_BODY_BYTES:
        return await asyncio.to_thread(parse, data, model)
    async with large_bodies:
        return await asyncio.to_thread(parse, data, model)


def check_type(request: Request) -> None:
    """Refuse a body that is no JSON by its headers.

    Raises:
        UnsupportedBodyError: the headers say so.

    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedBodyError(f"The body must be sent as it is, not with content-encoding {quote(encoding)}.")
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedBodyError(f"The body must be application/json, but its content-type is {quote(content_type)}.")


async def read_body(request: Request, part: Part) -> bytearray:
    """The body, as soon as it is there.

    Args:
        part: of the room for bodies, which this one takes up.

    Raises:
        BodyTooLargeError: it is longer than ``MAX_BODY_BYTES``, or its headers say so.
        BodyTimeoutError: it comes too slowly.
        ServiceUnavailableError: there is no room for it now.
        ClientDisconnectedError: the client left.

    """
    too_large = BodyTooLargeError(f"The body must not be longer than {MAX_BODY_BYTES >> 20} MiB.")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > MAX_BODY_BYTES:
        raise too_large
    begin, body = asyncio.get_running_loop().time(), bytearray()
    while True:
        try:
            async with asyncio.timeout_at(begin + BODY_GRACE_SECONDS + len(body) / BODY_BYTES_PER_SECOND):
                message = await request.receive()
        except TimeoutError:
            raise BodyTimeoutError(f"The body came too slowly: {len(body)} bytes of it are here.") from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnectedError("The client closed the request.")
        piece = message.get("body", b"")
        if len(body) + len(piece) > MAX_BODY_BYTES:
            raise too_large
        part.take(len(piece))
        body += piece
        if not message.get("more_body", False):
            return body


def parse(data: bytearray, model: type[BaseModel]) -> BaseModel:
    """A body as its model; may take long.

    Raises:
        InvalidRequestError: it is no JSON object.
        RequestValidationError: a field has a value that it can't have.

    """
    if not data or data.isspace():
        raise InvalidRequestError(NOT_AN_OBJECT)
    try:
        value = read_json(data)
    except FieldError as error:
        subject = "The body" if error.name is None else quote(error.name)
        raise InvalidRequestError(f"{subject} {error}.", error.name) from error
    except JSONError as error:
        raise InvalidRequestError(f"The body is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise InvalidRequestError(NOT_AN_OBJECT)
    try:
        body = model.model_validate(value)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        raise RequestValidationError([{**each, "loc": ("body", *each["loc"])} for each in errors]) from error
    if SURROGATE.search(data) and not is_encodable(json.dumps(value, ensure_ascii=False)):
        raise InvalidRequestError("The body holds half a surrogate pair: it must be valid Unicode.")
    return body
