"""Tools and tool choices of Anthropic's requests, and their translation to those of a chat."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, PlainValidator, model_validator

from server.api.anthropic.client_tools import client_tool
from server.api.core.bodies.fields import Text
from server.api.core.bodies.hosted_tools import OtherTool, check_hosted, is_hosted
from server.api.core.errors.validation import quote
from server.api.openai.tools import Name, Parameters
from server.engine.interface import JsonObject


class ClientTool(BaseModel):
    model_config = ConfigDict(strict=True)

    name: Name
    description: Text | None = None
    input_schema: Parameters
    strict: bool | None = None

    def for_chat(self) -> JsonObject:
        function = {"name": self.name, "description": self.description, "strict": self.strict}
        given = {name: value for name, value in function.items() if value is not None}
        return {"type": "function", "function": given | {"parameters": self.input_schema}}


def tool_of(value: object) -> ClientTool | OtherTool:
    """Validate a tool, and refuse unknown types: their missing fields would confuse."""
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(value, dict) or kind in (None, "custom"):
        return ClientTool.model_validate(value)
    if isinstance(kind, str) and is_hosted(kind):
        return OtherTool.model_validate(value)
    known = client_tool(kind) if isinstance(kind, str) else None
    if known is None:
        raise ValueError(
            'must be of the type "custom", or Anthropic\'s bash, text editor or memory, because this server runs no '
            f"tools itself; got {quote(kind)}"
        )
    description, schema = known
    return ClientTool.model_validate({"name": value.get("name"), "description": description, "input_schema": schema})


def ignored_types(tools: Sequence[ClientTool | OtherTool]) -> list[str]:
    """Return the types of the tools that are left out, each once."""
    return list(dict.fromkeys(tool.type for tool in tools if isinstance(tool, OtherTool)))


def check_tools(tools: list[ClientTool | OtherTool]) -> list[ClientTool | OtherTool]:
    check_hosted(ignored_types(tools), has_functions=any(isinstance(tool, ClientTool) for tool in tools))
    return tools


class ToolChoice(BaseModel):
    model_config = ConfigDict(strict=True)

    type: Literal["auto", "any", "tool", "none"]
    name: Text | None = None
    disable_parallel_tool_use: bool = False

    @model_validator(mode="after")
    def need_name(self) -> Self:
        if self.type == "tool" and self.name is None:
            raise ValueError("must have the 'name' of the tool")
        return self

    def for_chat(self) -> JsonObject:
        named = {"type": "function", "function": {"name": self.name}}
        choice = {"auto": "auto", "any": "required", "none": "none", "tool": named}[self.type]
        return {"tool_choice": choice} | ({"parallel_tool_calls": False} if self.disable_parallel_tool_use else {})


Tool = Annotated[ClientTool | OtherTool, PlainValidator(tool_of, json_schema_input_type=ClientTool | OtherTool)]
Tools = Annotated[list[Tool], AfterValidator(check_tools)]
