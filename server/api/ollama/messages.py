"""Messages of a chat in Ollama's form, and their translation to messages of a ``ChatBody``."""

import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from server.api.core.bodies.conversation import Conversation, image_part, text_part
from server.api.core.bodies.fields import Text
from server.api.core.errors.api_errors import InvalidRequestError
from server.api.ollama.body import OllamaModel
from server.engine.interface import JsonObject


class CalledFunction(OllamaModel):
    name: Text = Field(min_length=1)
    arguments: dict[str, Any] = Field({})


class ToolCall(OllamaModel):
    """A tool call of the assistant; older versions of Ollama give calls no ids."""

    id: Text | None = Field(None, min_length=1)
    function: CalledFunction


class Message(OllamaModel):
    """A message; a tool's result names its tool, its call, or neither."""

    role: Literal["system", "user", "assistant", "tool"]
    content: Text = ""
    thinking: Text = ""
    images: list[Text] = Field([])  # base64
    tool_calls: list[ToolCall] = Field([])
    tool_name: Text | None = None
    tool_call_id: Text | None = None

    @property
    def parts(self) -> list[JsonObject]:
        """The images and the text, as Ollama orders them."""
        return [*map(image_of, self.images), *([text_part(self.content)] if self.content else [])]


def image_of(base64: str) -> JsonObject:
    return image_part(f"data:;base64,{base64}")


def conversation_of(messages: Sequence[Message]) -> Conversation:
    """Translate messages.

    Raises:
        InvalidRequestError: a tool's result follows no call, or a message has tool calls without being the assistant's.

    """
    conversation = Conversation()
    unanswered: dict[str, str] = {}  # names of tools by the ids of their calls
    num_calls = 0
    for index, message in enumerate(messages):
        if message.role == "tool":
            call_id = _answered(message, unanswered, index)
            del unanswered[call_id]
            conversation.add_tool_result(call_id, message.parts)
            continue
        if message.tool_calls and message.role != "assistant":
            param = f"messages[{index}].tool_calls"
            raise InvalidRequestError(f"'{param}' is allowed only in messages of the assistant: leave it out.", param)
        conversation.add_content(message.role, message.parts)
        if message.thinking and message.role == "assistant":
            conversation.add_reasoning(message.thinking)
        for call in message.tool_calls:
            call_id = call.id or f"call_{num_calls}"
            num_calls += 1
            conversation.add_tool_call(call_id, call.function.name, json.dumps(call.function.arguments))
            unanswered[call_id] = call.function.name
    return conversation


def _answered(message: Message, unanswered: dict[str, str], index: int) -> str:
    """Return the id of the call that a tool's result answers: by id, else by the tool's name, else the first one."""
    if message.tool_call_id in unanswered:
        return message.tool_call_id
    named = (call_id for call_id, name in unanswered.items() if name == message.tool_name)
    call_id = next(named, None) or next(iter(unanswered), None)
    if call_id is None:
        raise InvalidRequestError(f"'messages[{index}]' must follow a tool call that it answers.", "messages")
    return call_id
