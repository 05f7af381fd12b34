"""The reply to a chat in any dialect: whole, or as server-sent events."""

from collections.abc import AsyncGenerator
from typing import Protocol

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from server.api.conversation import JsonObject
from server.api.disconnect import unless_client_leaves
from server.api.errors import APIError, api_error
from server.api.openai.generation import Generation
from server.api.openai.streaming import GenerationStream, sse
from server.engine.request import EngineError, TokenEvent


class TurnWriter(Protocol):
    """Writes a turn of one choice in its dialect; each event has its name under ``type``."""

    def opening(self) -> list[JsonObject]:
        """Events to send before the first token."""

    def write(self, token: TokenEvent) -> list[JsonObject]:
        """Events that say what an event of the engine says; show it every one, once and in order."""

    def failure(self, error: APIError) -> list[JsonObject]:
        """Events to end with if the engine fails after all."""

    def whole(self) -> JsonObject:
        """The reply as one object, once the turn is over."""


async def answer_turn(request: Request, generation: Generation, writer: TurnWriter, *, streams: bool) -> Response:
    """Answer an accepted chat; a client that leaves cancels it.

    Raises:
        ClientDisconnectedError: the client left.
        EngineError: the engine failed.

    """
    if streams:
        return GenerationStream(generation, turn_events(generation, writer))
    try:
        return JSONResponse(await unless_client_leaves(request.receive, whole_turn(generation, writer)))
    finally:
        generation.cancel()


async def whole_turn(generation: Generation, writer: TurnWriter) -> JsonObject:
    """The reply once it is over.

    Raises:
        EngineError: the engine failed.

    """
    async for arrived in generation.events():
        for _, token in arrived:
            writer.write(token)
    return writer.whole()


async def turn_events(generation: Generation, writer: TurnWriter) -> AsyncGenerator[bytes, None]:
    """The events of a reply, as many at a time as there are."""
    yield _render(writer.opening())
    try:
        async for arrived in generation.events():
            events = [event for _, token in arrived for event in writer.write(token)]
            if events:
                yield _render(events)
    except EngineError as error:
        yield _render(writer.failure(api_error(error)))


def _render(events: list[JsonObject]) -> bytes:
    return b"".join(sse(event, event["type"]) for event in events)
