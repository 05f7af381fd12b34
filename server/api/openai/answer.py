"""The end of every generation route: a whole reply, or a stream of it."""

from collections.abc import Coroutine
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from server.api.disconnect import unless_client_leaves
from server.api.openai.generation import Generation
from server.api.openai.replies import ReplyStyle, whole_reply
from server.api.openai.schemas import GenerationBody
from server.api.openai.streaming import ChunkNarrator, GenerationStream


async def answer(request: Request, body: GenerationBody, generation: Generation, style: ReplyStyle) -> Response:
    """Answer an accepted request; a client that leaves cancels it.

    Raises:
        ClientDisconnectedError: the client left.
        EngineError: one of the choices failed.

    """
    if body.stream:
        return GenerationStream(generation, ChunkNarrator(generation, style, include_usage=body.include_usage))
    return await answer_whole(request, generation, whole_reply(generation, style))


async def answer_whole(request: Request, generation: Generation, reply: Coroutine[Any, Any, bytes]) -> Response:
    """Answer with the JSON that comes of a generation; a client that leaves cancels it.

    Raises:
        ClientDisconnectedError: the client left.
        EngineError: one of the choices failed.

    """
    request.state.work = generation
    try:
        return Response(await unless_client_leaves(request.receive, reply), media_type="application/json")
    finally:
        generation.cancel()
