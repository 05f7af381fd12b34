"""The end of every generation route: a whole reply, or a stream of it."""

from fastapi import Request
from fastapi.responses import Response

from server.api.disconnect import unless_client_leaves
from server.api.openai.generation import Generation
from server.api.openai.replies import ReplyStyle, encode_reply, whole_reply
from server.api.openai.schemas import GenerationBody
from server.api.openai.streaming import GenerationStream, reply_events


async def answer(request: Request, body: GenerationBody, generation: Generation, style: ReplyStyle) -> Response:
    """Answer an accepted request; a client that leaves cancels it.

    Raises:
        ClientDisconnectedError: the client left.
        EngineError: one of the choices failed.

    """
    if body.stream:
        return GenerationStream(generation, reply_events(generation, style, include_usage=body.include_usage))
    try:
        reply = await unless_client_leaves(request.receive, whole_reply(generation, style))
        return Response(encode_reply(generation, reply), media_type="application/json")
    finally:
        generation.cancel()
