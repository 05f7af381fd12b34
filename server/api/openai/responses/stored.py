"""Stored responses: what a request continues, keeping its response, and the routes that read and delete them."""

import asyncio
from collections.abc import AsyncGenerator
from functools import partial
from typing import Annotated, Any, Literal
from uuid import uuid4

from fastapi import APIRouter, Depends, Query
from fastapi.responses import JSONResponse

from server.api.core.access.caller import current_caller
from server.api.core.errors.api_errors import AbsentRouteError, InvalidRequestError
from server.api.core.errors.validation import quote
from server.api.core.replies.response_store import ResponseStore, Turn
from server.api.core.service.body import PARSED_FACTOR
from server.api.core.service.dependencies import ServiceDep
from server.api.core.service.guard import UserDep
from server.api.core.service.service import Service
from server.api.openai.responses.body import ResponsesBody
from server.api.openai.responses.response_encoder import Keep
from server.engine.interface import Reservation

NO_STORE = "this server stores no responses: start it with --response-store, or send the whole conversation as 'input'"
ID_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}
MAX_PAGE, DEFAULT_PAGE = 100, 20  # OpenAI's

router = APIRouter(prefix="/v1/responses", tags=["responses"], dependencies=[UserDep])


async def earlier_items(body: ResponsesBody, service: Service, reservation: Reservation) -> list[Any]:
    """Return the items of the conversation that a request continues.

    Args:
        reservation: takes their memory.

    Raises:
        InvalidRequestError: the server stores no responses, or has not this one.
        EngineError: there is no memory for them.
        ResponseStoreError: it can't be read.

    """
    if body.previous_response_id is None:
        return []
    if service.response_store is None:
        raise InvalidRequestError(f"'previous_response_id' can't be used, because {NO_STORE}.", "previous_response_id")
    asked = current_caller().owner, body.previous_response_id
    num_bytes = await asyncio.to_thread(service.response_store.num_conversation_bytes, *asked)
    await reservation.use(PARSED_FACTOR * num_bytes, "The earlier conversation", "previous_response_id")
    return await asyncio.to_thread(service.response_store.conversation, *asked)


def keeping(body: ResponsesBody, service: Service) -> Keep | None:
    """Return the function that stores the response to a request; None if it is not to be stored."""
    if service.response_store is None or body.store is False:
        return None
    return partial(_keep, service.response_store, current_caller().owner, body)


def _keep(store: ResponseStore, owner: bytes, body: ResponsesBody, response: dict[str, Any]) -> None:
    store.save(owner, response, input_items(body.input), body.previous_response_id)


def input_items(given: str | list[Any]) -> list[dict[str, Any]]:
    """Return the input of a request as items, each with a type and an id, texts as parts."""
    if isinstance(given, str):
        return [_input_item({"role": "user", "content": given})]
    return [_input_item(item) for item in given]


def _input_item(item: dict[str, Any]) -> dict[str, Any]:
    kind = item.get("type") or "message"
    identified = {**item, "type": kind, "id": item.get("id") or f"{ID_PREFIXES.get(kind, 'item')}_{uuid4().hex}"}
    if kind == "message" and isinstance(item.get("content"), str):
        part = "output_text" if item.get("role") == "assistant" else "input_text"
        identified["content"] = [{"type": part, "text": item["content"]}]
    return identified


def store_of(service: Service) -> ResponseStore:
    """Return the store.

    Raises:
        AbsentRouteError: there is none.

    """
    if service.response_store is None:
        raise AbsentRouteError(f"There is no stored response, because {NO_STORE}.")
    return service.response_store


async def turn_of(response_id: str, service: ServiceDep) -> AsyncGenerator[Turn, None]:
    """Yield the turn of a response of the caller, whose memory is taken until the route has returned.

    Raises:
        APIError: there is no such response, or it can't be read.
        EngineError: there is no memory for it.

    """
    store, asked = store_of(service), (current_caller().owner, response_id)
    with service.memory.reserve() as reservation:
        num_bytes = await asyncio.to_thread(store.num_bytes, *asked)
        await reservation.use(PARSED_FACTOR * num_bytes, "The stored response")
        yield await asyncio.to_thread(store.find, *asked)


TurnDep = Annotated[Turn, Depends(turn_of, scope="function")]


@router.get("/{response_id}")  # noqa: FAST003  turn_of takes it
async def get_response(turn: TurnDep) -> JSONResponse:
    return JSONResponse(turn.response)


@router.delete("/{response_id}")
async def delete_response(response_id: str, service: ServiceDep) -> JSONResponse:
    await asyncio.to_thread(store_of(service).delete, current_caller().owner, response_id)
    return JSONResponse({"id": response_id, "object": "response", "deleted": True})


@router.get("/{response_id}/input_items")  # noqa: FAST003  turn_of takes it
async def list_input_items(
    turn: TurnDep,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = DEFAULT_PAGE,
    order: Literal["asc", "desc"] = "desc",
) -> JSONResponse:
    items = turn.input if order == "asc" else turn.input[::-1]
    ids = [item["id"] for item in items]
    if after is not None and after not in ids:
        raise InvalidRequestError(f"'after' must be the 'id' of an input item, got {quote(after)}.", "after")
    begin = 0 if after is None else ids.index(after) + 1
    page = items[begin : begin + limit]
    return JSONResponse(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": begin + limit < len(items),
        }
    )
