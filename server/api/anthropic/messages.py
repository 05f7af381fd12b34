"""``/v1/messages``: a conversation in Anthropic's form, continued by the assistant; and how long one is."""

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from server.api.anthropic.body import NAMES, MessagesBody, PromptBody
from server.api.anthropic.errors import ERRORS, AnthropicRoute
from server.api.anthropic.writer import MessageWriter
from server.api.auth import UserDep
from server.api.dependencies import ServiceDep
from server.api.openai.chat import begin_chat
from server.api.openai.turn_plan import encode
from server.api.openapi import STREAMED
from server.api.translation import in_words_of
from server.api.turn_reply import answer_turn

router = APIRouter(
    prefix="/v1/messages", tags=["messages"], dependencies=[UserDep], route_class=AnthropicRoute, responses=ERRORS
)


@router.post("", response_model=None, responses=STREAMED)
async def create_message(request: Request, body: MessagesBody, service: ServiceDep) -> Response:
    service.unknown_fields.note(body.unknown_fields)
    with in_words_of(NAMES):
        turn = await begin_chat(service, await asyncio.to_thread(body.for_chat), "msg_")
    writer = MessageWriter(turn, body.max_tokens, request.state.request_id)
    return await answer_turn(request, turn.generation, writer, streams=body.stream)


@router.post("/count_tokens")
async def count_tokens(body: PromptBody, service: ServiceDep) -> JSONResponse:
    service.unknown_fields.note(body.unknown_fields)
    with in_words_of(NAMES):
        chat = await asyncio.to_thread(body.for_chat)
        prompt = await asyncio.to_thread(encode, chat, service.accepting_model(chat.model).codec)
    return JSONResponse({"input_tokens": len(prompt.token_ids)})
