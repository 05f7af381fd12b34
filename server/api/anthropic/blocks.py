"""Content of messages: text, or content blocks; and their translation to messages of a chat."""

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from server.api.core.bodies.conversation import Conversation, image_part, text_part
from server.api.core.bodies.fields import Text, is_encodable
from server.api.core.bodies.translation import validated
from server.api.core.errors.api_errors import InvalidRequestError
from server.api.core.errors.validation import quote
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


def check_document_source(source: object) -> object:
    """Refuse other types of sources first: their missing fields would give a confusing error."""
    kind = source.get("type") if isinstance(source, dict) else source
    if kind not in ("text", "content"):
        raise ValueError(
            f'must have the type "text" or "content", because this server reads no PDF, fetches nothing and stores no '
            f"files; got {quote(kind)}"
        )
    return source


class TextSource(BaseModel):
    model_config = ConfigDict(strict=True)

    type: Literal["text"]
    media_type: Literal["text/plain"]
    data: Text


class ContentSource(BaseModel):
    model_config = ConfigDict(strict=True)

    type: Literal["content"]
    content: Any  # a string or a list of blocks


class DocumentBlock(BaseModel):
    """A text with a title and a context; answers have no citations of it."""

    model_config = ConfigDict(strict=True)

    source: Annotated[
        Annotated[TextSource | ContentSource, Field(discriminator="type")], BeforeValidator(check_document_source)
    ]
    title: Text | None = None
    context: Text | None = None


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


Block = TextBlock | ImageBlock | DocumentBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock | RedactedThinkingBlock
Kinds = dict[str, type[Block]]

SYSTEM: Kinds = {"text": TextBlock}
SHOWN: Kinds = {"text": TextBlock, "image": ImageBlock}
RESULT: Kinds = {**SHOWN, "document": DocumentBlock}
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


def parts_of(content: object, place: str, kinds: Kinds) -> list[JsonObject]:
    """Return the texts, images and documents at ``place`` in the form of chat completions.

    Raises:
        InvalidRequestError: one of the blocks is invalid or not allowed.

    """
    return [part for here, block in blocks_of(content, place, kinds) for part in _parts(block, here)]


def _parts(block: Block, place: str) -> list[JsonObject]:
    match block:
        case ImageBlock():
            return [image_part(f"data:{block.source.media_type};base64,{block.source.data}")]
        case TextBlock():
            return [text_part(block.text)]
        case DocumentBlock(source=source):
            head = [text_part(text) for text in (block.title, block.context) if text]
            if isinstance(source, TextSource):
                return [*head, text_part(source.data)]
            return [*head, *parts_of(source.content, f"{place}.source.content", SHOWN)]
    raise TypeError(block)


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
                result = parts_of(block.content, f"{here}.content", RESULT)
                conversation.add_tool_result(block.tool_use_id, result)
            case ThinkingBlock():
                conversation.add_reasoning(block.thinking)
            case TextBlock() | ImageBlock() | DocumentBlock():
                conversation.add_content(role, _parts(block, here))
            case RedactedThinkingBlock():
                pass
