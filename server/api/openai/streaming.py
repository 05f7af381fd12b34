"""Replies as server-sent events."""

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from server.api.disconnect import unless_client_leaves
from server.api.errors import ClientDisconnectedError, api_error
from server.api.openai.generation import Generation
from server.api.openai.replies import ReplyStyle, chunk, usage
from server.engine.request import EngineError

DONE = "data: [DONE]\n\n"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # the second keeps nginx from holding events back


class GenerationStream(StreamingResponse):
    """A generation's events; however the response ends, so does the generation."""

    def __init__(self, generation: Generation, style: ReplyStyle, *, include_usage: bool) -> None:
        self.generation = generation
        self.events = reply_events(generation, style, include_usage=include_usage)
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


async def reply_events(generation: Generation, style: ReplyStyle, *, include_usage: bool) -> AsyncGenerator[str, None]:
    """The chunks of a reply, then ``[DONE]``; a failure of the engine is a chunk too, for the status is sent."""
    num_generated = [0] * len(generation.streams)
    # OpenAI's chunks have a null usage up to the one that has it.
    no_usage = {"usage": None} if include_usage else {}
    try:
        for index in range(len(generation.streams)):
            for choice in style.opening(index):
                yield sse(chunk(generation, style, [choice]) | no_usage)
        async with aclosing(generation.events()) as events:
            async for index, event in events:
                num_generated[index] = event.num_generated
                for choice in style.delta(index, event):
                    yield sse(chunk(generation, style, [choice]) | no_usage)
    except EngineError as error:
        yield sse(api_error(error).body)
    else:
        if include_usage:
            yield sse(chunk(generation, style, []) | {"usage": usage(generation, num_generated)})
    yield DONE


def sse(data: Mapping[str, Any]) -> str:
    """One event. It is ASCII, because some clients take U+2028 and its like for the end of a line."""
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n"
