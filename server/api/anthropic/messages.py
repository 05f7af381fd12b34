"""``/v1/messages``: the next message of a conversation in Anthropic's form; and counting its tokens."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from server.api.anthropic.body import NAMES, MessagesBody, PromptBody
from server.api.anthropic.errors import ERRORS, AnthropicRoute
from server.api.anthropic.message_encoder import MessageEncoder
from server.api.anthropic.tools import ignored_types
from server.api.core.bodies.hosted_tools import name_ignored
from server.api.core.bodies.translation import translate_errors
from server.api.core.replies.reply import answer
from server.api.core.service.body import JsonBody
from server.api.core.service.dependencies import ServiceDep
from server.api.core.service.guard import UserDep
from server.api.core.service.openapi import STREAMED
from server.api.openai.chat import begin_chat
from server.api.openai.turn_plan import encode

router = APIRouter(
    prefix="/v1/messages", tags=["messages"], dependencies=[UserDep], route_class=AnthropicRoute, responses=ERRORS
)


@router.post("", response_model=None, responses=STREAMED)
async def create_message(
    request: Request, body: Annotated[MessagesBody, JsonBody(MessagesBody)], service: ServiceDep
) -> Response:
    service.unknown_fields.note(body.unknown_fields)
    with translate_errors(NAMES):
        turn = await begin_chat(request, service, await asyncio.to_thread(body.for_chat), "msg_")
    encoder = MessageEncoder(turn, body.max_tokens, request.state.request_id)
    response = await answer(request, encoder, stream=body.stream)
    return name_ignored(response, ignored_types(body.tools), service.ignored_tools)


@router.post("/count_tokens")
async def count_tokens(body: Annotated[PromptBody, JsonBody(PromptBody)], service: ServiceDep) -> Response:
    service.unknown_fields.note(body.unknown_fields)
    with translate_errors(NAMES):
        chat = await asyncio.to_thread(body.for_chat)
        prompt = await asyncio.to_thread(encode, chat, (await service.accepting_model(chat.model)).codec)
    response = JSONResponse({"input_tokens": len(prompt.token_ids)})
    return name_ignored(response, ignored_types(body.tools), service.ignored_tools)
