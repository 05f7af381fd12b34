"""Input items of a response, and their translation to messages of a chat."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, PlainValidator

from server.api.core.bodies.conversation import Conversation, image_part, text_part
from server.api.core.bodies.fields import Text
from server.api.core.bodies.translation import validated
from server.api.core.errors.api_errors import InvalidRequestError
from server.api.core.errors.validation import quote
from server.api.openai.content import content_of
from server.api.openai.messages import Arguments
from server.api.openai.responses.tools import FunctionName
from server.engine.interface import JsonObject


def parts_of(value: object) -> list[JsonObject]:
    """Return the parts of an item's content in the form of chat completions."""
    if isinstance(value, str):
        value = [{"type": "input_text", "text": value}]
    if not isinstance(value, list):
        raise ValueError("must be a string or a list of parts")  # noqa: TRY004  pydantic's own
    parts = [_part(part) for part in value]
    content_of(parts)
    return parts


def _part(part: object) -> JsonObject:
    match part:
        case {"type": "input_text" | "output_text" | "text" | "reasoning_text" | "summary_text", "text": str(text)}:
            return text_part(text)
        case {"type": "refusal", "refusal": str(text)}:
            return text_part(text)
        case {"type": "input_image", "image_url": str(url)}:
            return image_part(url)
        case {"type": "input_image"}:
            raise ValueError("must hold images as 'image_url': this server stores no files")
        case {"type": str(kind)}:
            raise ValueError(f"must hold parts of input_text, output_text or input_image only, got {quote(kind)}")
        case _:
            raise ValueError('must hold parts of the form {"type": "input_text", "text": "..."}')


Parts = Annotated[list[JsonObject], PlainValidator(parts_of)]


class Item(Protocol):
    """A message, tool call, tool result or reasoning of the conversation so far."""

    def add_to(self, conversation: Conversation, place: str) -> None:
        """Add the item to a conversation.

        Raises:
            InvalidRequestError: the item does not fit the items before it.

        """


class MessageItem(BaseModel):
    model_config = ConfigDict(strict=True)

    role: Literal["user", "assistant", "system", "developer"]
    content: Parts

    def add_to(self, conversation: Conversation, _place: str) -> None:
        conversation.add_content("system" if self.role == "developer" else self.role, self.content)


class FunctionCallItem(BaseModel):
    model_config = ConfigDict(strict=True)

    call_id: Text = Field(min_length=1)
    name: Text = Field(min_length=1)
    namespace: Text | None = None
    arguments: Arguments

    def add_to(self, conversation: Conversation, _place: str) -> None:
        conversation.add_tool_call(self.call_id, FunctionName(self.name, self.namespace).joined, self.arguments)


class FunctionCallOutputItem(BaseModel):
    model_config = ConfigDict(strict=True)

    call_id: Text
    output: Parts

    def add_to(self, conversation: Conversation, place: str) -> None:
        if not conversation.has_tool_call(self.call_id):
            param = f"{place}.call_id"
            raise InvalidRequestError(f"'{param}' must be the 'call_id' of a 'function_call' before it.", param)
        conversation.add_tool_result(self.call_id, self.output)


class ReasoningItem(BaseModel):
    """The text of earlier reasoning, or a summary of it. Encrypted reasoning of other servers is ignored."""

    model_config = ConfigDict(strict=True)

    content: Parts | None = None
    summary: Parts = []

    def add_to(self, conversation: Conversation, _place: str) -> None:
        text = "\n".join(part["text"] for part in self.content or self.summary if part["type"] == "text")
        if text:
            conversation.add_reasoning(text)


KINDS: dict[str, type[Any]] = {
    "message": MessageItem,
    "function_call": FunctionCallItem,
    "function_call_output": FunctionCallOutputItem,
    "reasoning": ReasoningItem,
}


def item_of(value: object, place: str) -> Item:
    """Validate the item at a place of the body.

    Raises:
        InvalidRequestError: it is not an item, or of a type that this server does not take.

    """
    if not isinstance(value, dict):
        raise InvalidRequestError(f"'{place}' must be an object, got {quote(value)}.", place)
    kind = value.get("type") or "message"
    if kind == "item_reference":
        raise InvalidRequestError(
            f"'{place}' refers to a stored item, but this server stores none: send the item itself.", place
        )
    if not isinstance(kind, str) or kind not in KINDS:
        known = ", ".join(map(repr, KINDS))
        raise InvalidRequestError(f"'{place}.type' must be one of {known}, got {quote(kind)}.", f"{place}.type")
    item: Item = validated(KINDS[kind], value, place)
    return item


def is_unfinished(items: str | Sequence[object]) -> bool:
    """Return True if the last item is a message of the assistant that is to be continued; vLLM goes by its status."""
    match [] if isinstance(items, str) else items:
        case [*_, {"role": "assistant", "status": "in_progress" | "incomplete"}]:
            return True
    return False


def add_input(conversation: Conversation, items: str | Sequence[object]) -> None:
    """Add the input of a request to a conversation.

    Raises:
        InvalidRequestError: the server does not take one of the items.

    """
    if isinstance(items, str):
        conversation.add_content("user", [text_part(items)])
        return
    for index, value in enumerate(items):
        place = f"input[{index}]"
        item_of(value, place).add_to(conversation, place)
