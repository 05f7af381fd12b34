"""Replies as server-sent events."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, Protocol

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from server.api.disconnect import unless_client_leaves
from server.api.errors import APIError, ClientDisconnectedError, api_error
from server.api.openai.generation import Generation
from server.api.openai.replies import JsonObject, ReplyStyle, around_list, chunk, encode_choice, encode_json, usage
from server.engine.request import EngineError, TokenEvent

DONE = b"data: [DONE]\n\n"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # the second keeps nginx from holding events back


class Narrator(Protocol):
    """Tells of a generation in the server-sent events of some dialect."""

    def opening(self) -> bytes:
        """What to send before the first token."""

    def tell(self, index: int, event: TokenEvent) -> bytes:
        """What to send of a choice's event; tell it of every one, once and in order."""

    def failure(self, error: APIError) -> bytes:
        """What to end with if the engine fails after all."""

    def ending(self) -> bytes:
        """What to end with else."""


async def narrate(generation: Generation, narrator: Narrator) -> AsyncGenerator[bytes, None]:
    """A reply's events, as many at a time as there are; a failure of the engine is one, too."""
    if opening := narrator.opening():
        yield opening
    try:
        async for arrived in generation.events():
            if told := b"".join([await _tell(narrator, index, event) for index, event in arrived]):
                yield told
    except EngineError as error:
        end = narrator.failure(api_error(error))
    else:
        end = narrator.ending()
    if end:
        yield end


async def _tell(narrator: Narrator, index: int, event: TokenEvent) -> bytes:
    if event.prompt_logprobs:  # of thousands of tokens
        return await asyncio.to_thread(narrator.tell, index, event)
    return narrator.tell(index, event)


class GenerationStream(StreamingResponse):
    """Events that tell of a generation; however the response ends, so does the generation."""

    def __init__(self, generation: Generation, narrator: Narrator) -> None:
        self.generation, self.events = generation, narrate(generation, narrator)
        super().__init__(self.events, headers=HEADERS, media_type="text/event-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["work"] = self.generation
        try:
            # StreamingResponse leaves it to some servers to report a client's leaving when something is sent,
            # and nothing is while a request waits.
            await unless_client_leaves(receive, self.stream_response(send))
        except (ClientDisconnectedError, OSError):
            return
        finally:
            self.generation.cancel()
            await self.events.aclose()


class ChunkNarrator:
    """Tells of completions and chats, chunk by chunk."""

    def __init__(self, generation: Generation, style: ReplyStyle, *, include_usage: bool) -> None:
        self._generation, self._style, self._include_usage = generation, style, include_usage
        self._render = chunk_renderer(generation, style, include_usage=include_usage)

    def opening(self) -> bytes:
        choices = [choice for index in range(len(self._generation.streams)) for choice in self._style.opening(index)]
        return b"".join(map(self._render, choices))

    def tell(self, index: int, event: TokenEvent) -> bytes:
        self._generation.note_experts(index, event)
        return b"".join(map(self._render, self._style.delta(index, event)))

    def failure(self, error: APIError) -> bytes:
        return sse(error.body) + DONE

    def ending(self) -> bytes:
        if not self._include_usage:
            return DONE
        total = {"usage": usage(self._generation)}
        return sse(chunk(self._generation, self._style, []) | total) + DONE


def chunk_renderer(generation: Generation, style: ReplyStyle, *, include_usage: bool) -> Callable[[JsonObject], bytes]:
    """Makes the event of a choice; what all events of a reply share is rendered once."""
    # OpenAI's chunks have a null usage up to the one that has it.
    shared = chunk(generation, style, []) | ({"usage": None} if include_usage else {})
    before, after = around_list(sse(shared).decode(), "choices")

    def render(choice: JsonObject) -> bytes:
        return f"{before}{encode_choice(generation, choice)}{after}".encode()

    return render


def sse(data: Mapping[str, Any], name: str | None = None) -> bytes:
    """One event. It is ASCII, because some clients take U+2028 and its like for the end of a line."""
    named = "" if name is None else f"event: {name}\n"
    return f"{named}data: {encode_json(data)}\n\n".encode()
