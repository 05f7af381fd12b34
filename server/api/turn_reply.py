"""The reply to a chat in a dialect of its own: whole, or as server-sent events."""

from typing import Protocol

from fastapi import Request
from fastapi.responses import Response

from server.api.errors import APIError
from server.api.openai.answer import answer_whole
from server.api.openai.generation import Generation
from server.api.openai.replies import JsonObject, encode_json
from server.api.openai.streaming import GenerationStream, sse
from server.engine.request import TokenEvent


class TurnWriter(Protocol):
    """Writes a turn of one choice; each event has its name under ``type``."""

    def opening(self) -> list[JsonObject]:
        """Events to send before the first token."""

    def write(self, token: TokenEvent) -> list[JsonObject]:
        """Events that say what an event of the engine says; show it every one, once and in order."""

    def failure(self, error: APIError) -> list[JsonObject]:
        """Events to end with if the engine fails after all."""

    def whole(self) -> JsonObject:
        """The reply as one object, once the turn is over."""


class TurnNarrator:
    """Tells what a turn's writer writes."""

    def __init__(self, writer: TurnWriter) -> None:
        self._writer = writer

    def opening(self) -> bytes:
        return _render(self._writer.opening())

    def tell(self, _index: int, event: TokenEvent) -> bytes:
        return _render(self._writer.write(event))

    def failure(self, error: APIError) -> bytes:
        return _render(self._writer.failure(error))

    def ending(self) -> bytes:
        return b""


async def answer_turn(request: Request, generation: Generation, writer: TurnWriter, *, streams: bool) -> Response:
    """Answer an accepted chat; a client that leaves cancels it.

    Raises:
        ClientDisconnectedError: the client left.
        EngineError: the engine failed.

    """
    if streams:
        return GenerationStream(generation, TurnNarrator(writer))
    return await answer_whole(request, generation, whole_turn(generation, writer))


async def whole_turn(generation: Generation, writer: TurnWriter) -> bytes:
    """The reply in JSON, once it is over.

    Raises:
        EngineError: the engine failed.

    """
    async for arrived in generation.events():
        for _, event in arrived:
            writer.write(event)
    return encode_json(writer.whole()).encode()


def _render(events: list[JsonObject]) -> bytes:
    return b"".join([sse(event, event["type"]) for event in events])
