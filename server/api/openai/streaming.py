"""Replies as server-sent events."""

from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from server.api.disconnect import unless_client_leaves
from server.api.errors import ClientDisconnectedError, api_error
from server.api.openai.generation import Generation
from server.api.openai.replies import JsonObject, ReplyStyle, chunk, encode_choice, encode_json, usage
from server.engine.request import EngineError

DONE = b"data: [DONE]\n\n"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # the second keeps nginx from holding events back


class GenerationStream(StreamingResponse):
    """Events that tell of a generation; however the response ends, so does the generation.

    Args:
        events: as they are sent; a failure of the engine has to be among them.

    """

    def __init__(self, generation: Generation, events: AsyncGenerator[bytes, None]) -> None:
        self.generation, self.events = generation, events
        super().__init__(self.events, headers=HEADERS, media_type="text/event-stream")

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        try:
            # StreamingResponse leaves it to some servers to report a client's leaving when something is sent,
            # and nothing is while a request waits.
            await unless_client_leaves(receive, self.stream_response(send))
        except (ClientDisconnectedError, OSError):
            return
        finally:
            self.generation.cancel()
            await self.events.aclose()


async def reply_events(
    generation: Generation, style: ReplyStyle, *, include_usage: bool
) -> AsyncGenerator[bytes, None]:
    """The chunks of a reply, as many at a time as there are; a failure of the engine is a chunk too."""
    num_generated = [0] * len(generation.streams)
    render = chunk_renderer(generation, style, include_usage=include_usage)
    opening = [render(choice) for index in range(len(generation.streams)) for choice in style.opening(index)]
    if opening:
        yield b"".join(opening)
    try:
        async for arrived in generation.events():
            chunks = []
            for index, event in arrived:
                num_generated[index] = event.num_generated
                generation.note_experts(index, event)
                chunks += [render(choice) for choice in style.delta(index, event)]
            if chunks:
                yield b"".join(chunks)
    except EngineError as error:
        end = sse(api_error(error).body)
    else:
        total = {"usage": usage(generation, num_generated)}
        end = sse(chunk(generation, style, []) | total) if include_usage else b""
    yield end + DONE


def chunk_renderer(generation: Generation, style: ReplyStyle, *, include_usage: bool) -> Callable[[JsonObject], bytes]:
    """Makes the event of a choice; what all events of a reply share is rendered once."""
    # OpenAI's chunks have a null usage up to the one that has it.
    shared = chunk(generation, style, []) | ({"usage": None} if include_usage else {})
    before, _, after = sse(shared).decode().partition('"choices":[]')  # which no string in JSON can hold

    def render(choice: JsonObject) -> bytes:
        return f'{before}"choices":[{encode_choice(generation, choice)}]{after}'.encode()

    return render


def sse(data: Mapping[str, Any], name: str | None = None) -> bytes:
    """One event. It is ASCII, because some clients take U+2028 and its like for the end of a line."""
    named = "" if name is None else f"event: {name}\n"
    return f"{named}data: {encode_json(data)}\n\n".encode()
