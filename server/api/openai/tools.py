"""Tools of a chat, and the tool choice.

The ValueError of a validator says what the value must be; ``server.api.core.errors.validation`` puts the field's name
before it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, model_validator

from server.api.core.bodies.fields import Text, is_encodable
from server.api.core.bodies.nulls import without_nulls
from server.api.core.errors.validation import quote
from server.api.core.grammars.json_schema import check_schema, check_strict

MAX_TOOLS = 128
MAX_TOOLS_BYTES = 1 << 18  # all tools together, as JSON
NAME = r"^[a-zA-Z0-9_-]{1,128}$"
CHOICES = (
    '"auto", "none", "required", {"type": "function", "function": {"name": "..."}}, or {"type": "allowed_tools", '
    '"allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "..."}}]}}'
)


def object_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Check a schema of arguments, which must be an object."""
    if schema.get("type", "object") != "object":
        raise ValueError("must be a JSON schema of type 'object'")
    if not isinstance(schema.get("properties", {}), dict):
        raise ValueError("must have an object for its 'properties'")  # noqa: TRY004  pydantic's own
    return {"type": "object", "properties": {}, **check_schema(schema)}


Name = Annotated[str, Field(pattern=NAME)]
Parameters = Annotated[dict[str, Any], AfterValidator(object_schema)]


class Function(BaseModel):
    """The description of a tool, and the schema of its arguments."""

    model_config = ConfigDict(strict=True)

    name: Name
    description: Text = ""
    parameters: Parameters = {"type": "object", "properties": {}}
    strict: bool | None = None  # enforce the schema also if no call is forced

    @model_validator(mode="after")
    def need_grammar(self) -> "Function":
        if self.strict:
            check_strict(self.parameters, self.name)
        return self


class Tool(BaseModel):
    """A tool; functions are the only type."""

    model_config = ConfigDict(strict=True)

    type: Literal["function"]
    function: Annotated[Function, BeforeValidator(without_nulls)]

    @property
    def name(self) -> str:
        return self.function.name

    def for_template(self) -> dict[str, Any]:
        """Return the tool in the form of chat templates; many need every field."""
        return {"type": self.type, "function": self.function.model_dump(include={"name", "description", "parameters"})}


def check_tools(tools: list[Tool]) -> list[Tool]:
    """Check that names are unique, and that the tools are not too large together."""
    names = [tool.name for tool in tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"must have unique names, but two are named '{twice}'")
    text = json.dumps([tool.for_template() for tool in tools], ensure_ascii=False)
    if not is_encodable(text):
        raise ValueError("must hold valid Unicode only, without half a surrogate pair")
    if len(text) > MAX_TOOLS_BYTES:
        raise ValueError(f"must not have more than {MAX_TOOLS_BYTES >> 10} KiB in total")
    return tools


class NamedTool(str):
    """The name of the tool that the model must call."""

    __slots__ = ()


@dataclass(frozen=True)
class AllowedTools:
    """OpenAI's ``allowed_tools``: the tools that may be called, out of those that the prompt shows."""

    names: frozenset[str]
    mode: Literal["auto", "required"]


Choice = str | NamedTool | AllowedTools


def choice_of(value: object) -> Choice:
    match value:
        case "auto" | "none" | "required":
            return str(value)
        case {"type": "function", "function": {"name": str(name)}}:
            return NamedTool(name)
        case {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "auto" | "required" as mode, "tools": [_, *_] as tools},
        }:
            return AllowedTools(frozenset(map(_allowed_name, tools)), mode)
        case _:
            raise ValueError(f"must be {CHOICES}")


def _allowed_name(tool: object) -> str:
    match tool:
        case {"type": "function", "function": {"name": str(name)}}:
            return name
    raise ValueError(f'must allow tools as {{"type": "function", "function": {{"name": "..."}}}}, got {quote(tool)}')


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True), AfterValidator(check_tools)]
ToolChoice = Annotated[Choice, PlainValidator(choice_of, json_schema_input_type=str | dict[str, Any])]


def must_call(choice: Choice) -> bool:
    """Return True if a tool choice demands a call."""
    return choice.mode == "required" if isinstance(choice, AllowedTools) else choice not in ("auto", "none")


def callable_tools(tools: Sequence[Tool], choice: Choice) -> list[Tool]:
    """Return the tools that a tool choice allows."""
    if isinstance(choice, AllowedTools):
        return [tool for tool in tools if tool.name in choice.names]
    if isinstance(choice, NamedTool):
        return [tool for tool in tools if tool.name == choice]
    return [] if choice == "none" else list(tools)
