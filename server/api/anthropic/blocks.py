"""Content of messages: text, or content blocks; and their translation to messages of a chat."""

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from server.api.core.conversation import Conversation, image_part, text_part
from server.api.core.errors import InvalidRequestError
from server.api.core.fields import Text, is_encodable
from server.api.core.translation import validated
from server.api.core.validation import quote
from server.engine.interface import JsonObject


def check_source(kind: str) -> str:
    if kind != "base64":
        raise ValueError(
            f'must be "base64", because this server fetches nothing and stores no files; got {quote(kind)}'
        )
    return kind


class TextBlock(BaseModel):
    model_config = ConfigDict(strict=True)

    text: Text


class ImageSource(BaseModel):
    model_config = ConfigDict(strict=True)

    type: Annotated[str, AfterValidator(check_source)]
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: Text


class ImageBlock(BaseModel):
    model_config = ConfigDict(strict=True)

    source: ImageSource


class ToolUseBlock(BaseModel):
    model_config = ConfigDict(strict=True)

    id: Text = Field(min_length=1)
    name: Text = Field(min_length=1)
    input: dict[str, Any]


class ToolResultBlock(BaseModel):
    model_config = ConfigDict(strict=True)

    tool_use_id: Text
    content: Any = ""  # a string or a list of blocks


class ThinkingBlock(BaseModel):
    model_config = ConfigDict(strict=True)

    thinking: Text


class RedactedThinkingBlock(BaseModel):
    """Encrypted reasoning of other servers, which is ignored."""


Block = TextBlock | ImageBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock | RedactedThinkingBlock
Kinds = dict[str, type[Block]]

SYSTEM: Kinds = {"text": TextBlock}
RESULT: Kinds = {"text": TextBlock, "image": ImageBlock}
USER: Kinds = {**RESULT, "tool_result": ToolResultBlock}
ASSISTANT: Kinds = {
    "text": TextBlock,
    "tool_use": ToolUseBlock,
    "thinking": ThinkingBlock,
    "redacted_thinking": RedactedThinkingBlock,
}


def blocks_of(content: object, place: str, kinds: Kinds) -> Iterator[tuple[str, Block]]:
    """Yield the blocks at ``place`` in the body, each with its own place; a string is one text block.

    Raises:
        InvalidRequestError: a block is invalid, or of a type that is not allowed there.

    """
    if isinstance(content, str) and is_encodable(content):
        yield place, TextBlock(text=content)
        return
    if not isinstance(content, list):
        what = "a string of valid Unicode or a list of blocks"
        raise InvalidRequestError(f"'{place}' must be {what}, got {quote(content)}.", place)
    for index, value in enumerate(content):
        here = f"{place}[{index}]"
        kind = value.get("type") if isinstance(value, dict) else value
        if not isinstance(kind, str) or kind not in kinds:
            known = ", ".join(map(repr, kinds))
            raise InvalidRequestError(f"'{here}' must be a block of {known}, got {quote(kind)}.", here)
        yield here, validated(kinds[kind], value, here)


def part_of(block: Block) -> JsonObject:
    """Return a text or an image in the form of chat completions."""
    if isinstance(block, ImageBlock):
        return image_part(f"data:{block.source.media_type};base64,{block.source.data}")
    assert isinstance(block, TextBlock)
    return text_part(block.text)


def add_content(conversation: Conversation, role: str, content: object, place: str, kinds: Kinds) -> None:
    """Add the content of a message to a conversation.

    Raises:
        InvalidRequestError: one of the blocks is invalid or not allowed.

    """
    for here, block in blocks_of(content, place, kinds):
        match block:
            case ToolUseBlock():
                conversation.add_tool_call(block.id, block.name, json.dumps(block.input))
            case ToolResultBlock():
                if not conversation.has_tool_call(block.tool_use_id):
                    param = f"{here}.tool_use_id"
                    raise InvalidRequestError(f"'{param}' must be the 'id' of a 'tool_use' before it.", param)
                result = blocks_of(block.content, f"{here}.content", RESULT)
                conversation.add_tool_result(block.tool_use_id, [part_of(each) for _, each in result])
            case ThinkingBlock():
                conversation.add_reasoning(block.thinking)
            case TextBlock() | ImageBlock():
                conversation.add_content(role, [part_of(block)])
            case RedactedThinkingBlock():
                pass
