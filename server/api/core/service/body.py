"""Bodies of requests: read within limits, then parsed and validated, off the event loop unless they are small.

A route declares its body as ``body: Annotated[Model, JsonBody(Model)]``. FastAPI resolves the dependencies of a router
first, so the guards of a route run before its body is read.
"""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Collection
from typing import Any

from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from server.api.core.bodies.fields import is_encodable
from server.api.core.errors.api_errors import (
    BodyTimeoutError,
    BodyTooLargeError,
    ClientDisconnectedError,
    InvalidRequestError,
    UnsupportedBodyError,
)
from server.api.core.errors.validation import NOT_AN_OBJECT, quote
from server.api.core.json_text.reader import FieldError, JSONError, read_json
from server.api.core.service.dependencies import ServiceDep
from server.engine.interface import Reservation

PARSED_FACTOR = 4  # memory of a body and what it is parsed to, as a multiple of its bytes
MAX_BODY_BYTES = 24 << 20  # fits the images of a request, and more text than any model takes
SMALL_BODY_BYTES = 16 << 10  # up to this size, parsing takes a few milliseconds and needs no thread
LARGE_BODY_BYTES = 1 << 20  # above this size, bodies are parsed one at a time: parsing takes several times their bytes
BODY_GRACE_SECONDS = 30.0  # time for a body to arrive, besides what BODY_BYTES_PER_SECOND adds
BODY_BYTES_PER_SECOND = 16 << 10
JSON_TYPES = frozenset({"application/json"})
SURROGATE = re.compile(rb"\\u[dD]")


class BodyReader:
    """A dependency that reads, parses and validates the body of a request.

    The body counts as memory of requests until the route has returned its response.

    Args:
        types: content types that the body may have; "" is none.

    """

    def __init__(self, model: type[BaseModel], types: Collection[str] = JSON_TYPES) -> None:
        self.model, self.types = model, types

    async def __call__(self, request: Request, service: ServiceDep) -> AsyncGenerator[BaseModel, None]:
        with service.memory.reserve() as reservation:
            yield await self._read(request, reservation, service.large_bodies)

    async def _read(self, request: Request, reservation: Reservation, large_bodies: asyncio.Lock) -> BaseModel:
        check_type(request, self.types)
        data = await read_body(request, reservation)
        if len(data) <= SMALL_BODY_BYTES:
            return parse(data, self.model)
        if len(data) <= LARGE_BODY_BYTES:
            return await asyncio.to_thread(parse, data, self.model)
        async with large_bodies:
            return await asyncio.to_thread(parse, data, self.model)


def JsonBody(model: type[BaseModel], types: Collection[str] = JSON_TYPES) -> Any:  # noqa: N802  as FastAPI's Body
    """Declare a parameter of a route that is the body, validated as ``model``."""
    return Depends(BodyReader(model, types), scope="function")


def check_type(request: Request, types: Collection[str]) -> None:
    """Refuse a body whose headers declare a type that is not one of ``types``, or an encoding.

    Raises:
        UnsupportedBodyError: the server does not take such a body.

    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedBodyError(f"The body has the content-encoding {quote(encoding)}: send it unencoded.")
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() not in types:
        raise UnsupportedBodyError(f"The body must be application/json, but its content-type is {quote(content_type)}.")


async def read_body(request: Request, reservation: Reservation) -> bytearray:
    """Read the body as it arrives.

    Args:
        reservation: grows by each part of the body.

    Raises:
        BodyTooLargeError: the body, or the length that it declares, is more than ``MAX_BODY_BYTES``.
        BodyTimeoutError: the body arrives too slowly.
        RequestRefusedError: the server has too little memory for a body of that size.
        RequestMemoryError: other requests hold the memory.
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
            raise BodyTimeoutError(f"The body arrived too slowly: {len(body)} bytes came in time.") from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnectedError("The client closed the request.")
        part = message.get("body", b"")
        if len(body) + len(part) > MAX_BODY_BYTES:
            raise too_large
        await reservation.use(PARSED_FACTOR * len(part), "The body")
        body += part
        if not message.get("more_body", False):
            return body


def parse(data: bytearray, model: type[BaseModel]) -> BaseModel:
    """Parse a body and validate it as a model; may take long.

    Raises:
        InvalidRequestError: the body is not a JSON object.
        RequestValidationError: a field has a value that the model does not accept.

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
        raise InvalidRequestError("The body contains half a surrogate pair: send valid Unicode.")
    return body
