"""Messages of a chat.

The ValueError of a validator says what the value must be; ``server.api.core.errors.validation`` puts the field's name
before it.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from server.api.core.bodies.fields import Text, only
from server.api.core.errors.api_errors import InvalidRequestError
from server.api.core.json_text.cut_json import parse_cut
from server.api.openai.content import ImagePart, content_of

MAX_ARGUMENTS = 1 << 18  # characters of the arguments of a call
NO_FUNCTIONS = "is no longer how tools are called: use 'tools' and 'tool_calls'"


def json_object(text: str) -> str:
    """Return the arguments of a call as a complete object, which templates need.

    An empty text is an empty object, and arguments that ``max_tokens`` has cut off are closed.
    """
    if len(text) > MAX_ARGUMENTS:  # json holds the interpreter's lock
        raise ValueError(f"must not have more than {MAX_ARGUMENTS} characters, but has {len(text)}")
    text = text or "{}"
    try:
        value, is_cut = parse_cut(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"must be JSON: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError("must be JSON with fewer levels, or shorter numbers") from error
    if not isinstance(value, dict):
        raise ValueError("must be a JSON object")  # noqa: TRY004  pydantic's own
    return json.dumps(value, ensure_ascii=False) if is_cut else text


Arguments = Annotated[Text, AfterValidator(json_object)]


class CalledFunction(BaseModel):
    model_config = ConfigDict(strict=True)

    name: Text = Field(min_length=1)
    arguments: Arguments


class ToolCall(BaseModel):
    """A tool call of the assistant."""

    model_config = ConfigDict(strict=True)

    id: Text = Field(min_length=1)
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(BaseModel):
    """A message. Null is the same as leaving a field out, except for ``content``."""

    model_config = ConfigDict(strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    tool_calls: list[ToolCall] | None = Field(None, fail_fast=True)
    tool_call_id: Text | None = Field(None, validate_default=True)
    reasoning_content: Text | None = None
    refusal: Text | None = None
    function_call: Annotated[Any, only(None, why=NO_FUNCTIONS)] = None
    content: str | list[str | ImagePart] | None = Field(None, validate_default=True)

    @field_validator("role", mode="before")
    @classmethod
    def refuse_functions(cls, role: object) -> object:
        if role == "function":
            raise ValueError(f"'function' {NO_FUNCTIONS}, whose results are messages of role 'tool'")
        return role

    @field_validator("tool_calls")
    @classmethod
    def let_assistants_call(cls, calls: list[ToolCall] | None, info: ValidationInfo) -> list[ToolCall] | None:
        if calls and info.data.get("role") != "assistant":
            raise ValueError("is allowed only in messages of the assistant: leave it out")
        return calls

    @field_validator("tool_call_id")
    @classmethod
    def need_id(cls, call_id: str | None, info: ValidationInfo) -> str | None:
        if call_id is None and info.data.get("role") == "tool":
            raise ValueError("is required in messages of role 'tool': it names the call that the result answers")
        return call_id

    @field_validator("content", mode="plain", json_schema_input_type=str | list[dict[str, Any]] | None)
    @classmethod
    def need_content(cls, content: object, info: ValidationInfo) -> str | list[str | ImagePart] | None:
        """Require content, except in an assistant's message with tool calls, reasoning or a refusal."""
        if content is not None:
            parts = content_of(content)
            if info.data.get("role") == "tool" and not isinstance(parts, str):
                raise ValueError("must be a string or a list of parts of text in messages of role 'tool'")
            return parts
        is_assistant = info.data.get("role") == "assistant"
        if is_assistant and info.data.get("refusal") is not None:
            return str(info.data["refusal"])
        if not (is_assistant and (info.data.get("tool_calls") or info.data.get("reasoning_content"))):
            raise ValueError("is required: a string or a list of parts")
        return None

    @property
    def text(self) -> str:
        """The text of the message, without its images."""
        return "".join(part for part in self.content or () if isinstance(part, str))

    @property
    def images(self) -> list[ImagePart]:
        """The images of the message, in order."""
        return [part for part in self.content or () if isinstance(part, ImagePart)]

    def for_template(self) -> dict[str, Any]:
        """Return the message in the form of chat templates, which do not know the role developer."""
        content: Any = self.content or ""
        if not isinstance(content, str):
            image = {"type": "image"}
            content = [{"type": "text", "text": part} if isinstance(part, str) else image for part in content]
        message = {"role": "system" if self.role == "developer" else self.role, "content": content}
        if self.tool_calls:
            message["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        if self.reasoning_content:
            # The names that the templates of Qwen, gpt-oss and others use.
            message |= dict.fromkeys(("reasoning_content", "reasoning", "thinking"), self.reasoning_content)
        return message


def messages_for_template(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return all messages in the form of chat templates; tool results have the names of their tools.

    Raises:
        InvalidRequestError: a tool result answers no earlier call.

    """
    names: dict[str, str] = {}
    prepared = []
    for place, message in enumerate(messages):
        each = message.for_template()
        names |= {call.id: call.function.name for call in message.tool_calls or ()}
        if message.role == "tool":
            name = names.get(message.tool_call_id or "")
            if name is None:
                param = f"messages[{place}].tool_call_id"
                raise InvalidRequestError(
                    f"'{param}' must be the 'id' of a tool call in an assistant's message before it.", param
                )
            each |= {"tool_call_id": message.tool_call_id, "name": name}
        prepared.append(each)
    return prepared
