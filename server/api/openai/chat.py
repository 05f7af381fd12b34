"""``/v1/chat/completions``: a conversation, continued by the assistant."""

import asyncio
from collections.abc import Sequence

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.api.auth import UserDep
from server.api.dependencies import ServiceDep
from server.api.openai.answer import answer
from server.api.openai.generation import submit
from server.api.openai.logprobs import chat_logprobs
from server.api.openai.replies import JsonObject
from server.api.openai.schemas import ChatBody
from server.engine.request import ChatPrompt, FinishReason, TextCodec, TokenEvent

router = APIRouter(tags=["chat"], dependencies=[UserDep])


class ChatStyle:
    """A choice is a message of the assistant; its pieces are deltas, the first of which names the role."""

    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, codec: TextCodec, *, has_logprobs: bool) -> None:
        self._codec = codec
        self._has_logprobs = has_logprobs

    def choice(self, index: int, events: Sequence[TokenEvent]) -> JsonObject:
        text = "".join(event.text for event in events)
        message = {"role": "assistant", "content": text, "refusal": None}
        tokens = [each for event in events for each in event.logprobs]
        logprobs = chat_logprobs(self._codec, tokens) if self._has_logprobs else None
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": events[-1].finish_reason}

    def opening(self, index: int) -> list[JsonObject]:
        return [self._piece(index, {"role": "assistant", "content": ""})]

    def delta(self, index: int, event: TokenEvent) -> list[JsonObject]:
        pieces = []
        if event.text or event.logprobs:
            piece = self._piece(index, {"content": event.text})
            if self._has_logprobs:
                piece["logprobs"] = chat_logprobs(self._codec, event.logprobs)
            pieces.append(piece)
        if event.finish_reason is not None:
            pieces.append(self._piece(index, {}, event.finish_reason))
        return pieces

    def _piece(self, index: int, delta: JsonObject, finish_reason: FinishReason | None = None) -> JsonObject:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def encode(body: ChatBody, codec: TextCodec) -> ChatPrompt:
    """The conversation as the model takes it; may block.

    Raises:
        InvalidRequestError: an image is no base64.
        RequestRefusedError: the model takes no such conversation.

    """
    messages = [message.for_template() for message in body.messages]
    images = [image.decode() for message in body.messages for image in message.images]
    return codec.encode_chat(messages, images)


@router.post("/v1/chat/completions", response_model=None)
async def create_chat_completion(request: Request, body: ChatBody, service: ServiceDep) -> Response:
    model = service.accepting_model(body.model)
    service.unknown_fields.note(body.model_extra or ())
    prompt = await asyncio.to_thread(encode, body, model.codec)
    generation = submit(model, body, [prompt.token_ids], "chatcmpl", "messages", prompt.media)
    return await answer(request, body, generation, ChatStyle(model.codec, has_logprobs=body.logprobs))
