"""Tools of ``ResponsesBody``: functions, namespaces of functions, and those that the server leaves out.

The ValueError of a validator says what the value must be; ``server.api.core.errors.validation`` puts the field's name
before it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, ValidationInfo, field_validator

from server.api.core.bodies.fields import Text
from server.api.core.bodies.hosted_tools import OtherTool, check_hosted
from server.api.core.errors.validation import quote
from server.api.openai.tools import MAX_TOOLS, Name, Parameters
from server.engine.interface import JsonObject

MAX_NAME = 128  # characters of the name that the model gets
SEPARATOR = "__"


@dataclass(frozen=True)
class FunctionName:
    """The name of a function, and of its namespace if it has one."""

    name: str
    namespace: str | None = None

    @property
    def joined(self) -> str:
        """The one name by which the model knows the function."""
        if self.namespace is None:
            return self.name
        return f"{self.namespace.removesuffix(SEPARATOR)}{SEPARATOR}{self.name}"

    @property
    def fields(self) -> dict[str, str]:
        """The fields of a ``function_call`` that name the function."""
        return {"name": self.name} | ({} if self.namespace is None else {"namespace": self.namespace})


class FunctionTool(BaseModel):
    model_config = ConfigDict(strict=True)

    type: Literal["function"]
    name: Name
    description: Text | None = None
    parameters: Parameters | None = None
    strict: bool | None = None

    def for_chat(self, name: FunctionName, description: str | None) -> JsonObject:
        function = self.model_dump(exclude={"type", "name", "description"}, exclude_none=True)
        described = {} if description is None else {"description": description}
        return {"type": "function", "function": {"name": name.joined, **described, **function}}


def check_tools(tools: "list[Tool]") -> "list[Tool]":
    check_hosted(ignored_types(tools), has_functions=bool(function_names(tools)))
    return tools


class Namespace(BaseModel):
    """Functions under one name."""

    model_config = ConfigDict(strict=True)

    type: Literal["namespace"]
    name: Name
    description: Text | None = None
    tools: "list[Member]" = Field(max_length=MAX_TOOLS, fail_fast=True)

    @field_validator("tools")
    @classmethod
    def limit_names(cls, tools: "list[Member]", info: ValidationInfo) -> "list[Member]":
        names = [FunctionName(tool.name, info.data.get("name")) for tool in tools if isinstance(tool, FunctionTool)]
        long = next((each for each in names if len(each.joined) > MAX_NAME), None)
        if long is not None:
            raise ValueError(
                f"must have shorter names: that of the namespace and {quote(long.name)} have more than {MAX_NAME} "
                "characters together"
            )
        return tools


def tool_of(value: object, kinds: Mapping[str, type[BaseModel]]) -> BaseModel:
    """Validate a tool as the model of its type; as ``OtherTool`` if there is none."""
    if not isinstance(value, dict):
        raise ValueError(f"must be an object, got {quote(value)}")  # noqa: TRY004  pydantic's own
    kind = value.get("type")
    return (kinds.get(kind, OtherTool) if isinstance(kind, str) else OtherTool).model_validate(value)


def member_of(value: object) -> BaseModel:
    return tool_of(value, {"function": FunctionTool})


def any_tool_of(value: object) -> BaseModel:
    return tool_of(value, {"function": FunctionTool, "namespace": Namespace})


Member = Annotated[FunctionTool | OtherTool, PlainValidator(member_of, json_schema_input_type=FunctionTool | OtherTool)]
Tool = Annotated[
    FunctionTool | Namespace | OtherTool,
    PlainValidator(any_tool_of, json_schema_input_type=FunctionTool | Namespace | OtherTool),
]
Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True), AfterValidator(check_tools)]


def tools_for_chat(tools: Sequence[Tool]) -> list[JsonObject]:
    """Return all functions as tools of a chat; one without a description has that of its namespace."""
    return [
        function.for_chat(name, function.description or (None if namespace is None else namespace.description))
        for name, function, namespace in _functions(tools)
    ]


def function_names(tools: Sequence[Tool]) -> dict[str, FunctionName]:
    """Return the name of each function by the name that the model gets."""
    return {name.joined: name for name, _, _ in _functions(tools)}


def ignored_types(tools: Iterable[Any]) -> list[str]:
    """Return the types of the tools that are left out, each once."""
    members = [each for tool in tools for each in (tool.tools if isinstance(tool, Namespace) else [tool])]
    return list(dict.fromkeys(each.type for each in members if isinstance(each, OtherTool)))


def served_tools(tools: Sequence[Tool]) -> list[JsonObject]:
    """Return the tools as the response repeats them, without those that are left out."""
    return [_repeated(tool) for tool in tools if not isinstance(tool, OtherTool)]


def _repeated(tool: FunctionTool | Namespace) -> JsonObject:
    if isinstance(tool, Namespace):
        return {**tool.model_dump(exclude={"tools"}), "tools": served_tools(tool.tools)}
    return tool.model_dump()


def _functions(tools: Sequence[Tool]) -> Iterator[tuple[FunctionName, FunctionTool, Namespace | None]]:
    for tool in tools:
        if isinstance(tool, FunctionTool):
            yield FunctionName(tool.name), tool, None
        elif isinstance(tool, Namespace):
            for member in tool.tools:
                if isinstance(member, FunctionTool):
                    yield FunctionName(member.name, tool.name), member, tool


def tool_choice_of(value: object) -> str | JsonObject:
    match value:
        case "none" | "auto" | "required":
            return str(value)
        case {"type": "function", "name": str(name)}:
            return {"type": "function", "name": name}
        case {"type": "allowed_tools", "mode": "auto" | "required" as mode, "tools": [_, *_] as tools}:
            return {"type": "allowed_tools", "mode": mode, "tools": tools}
        case _:
            forms = (
                '"none", "auto", "required", {"type": "function", "name": "..."} or {"type": "allowed_tools", '
                '"mode": "auto", "tools": [{"type": "function", "name": "..."}]}'
            )
            raise ValueError(f"must be {forms}, got {quote(value)}")


ToolChoice = Annotated[str | JsonObject, PlainValidator(tool_choice_of, json_schema_input_type=str | JsonObject)]


def choice_for_chat(choice: str | JsonObject, tools: Sequence[Tool]) -> str | JsonObject:
    """Return the tool choice of a chat. A name that is no function's is looked for in the namespaces."""
    if isinstance(choice, str):
        return choice
    names = function_names(tools)
    if choice["type"] == "function":
        return _function_choice(choice["name"], names)
    # Tools that the server leaves out can be allowed as little as they can be called.
    allowed = [
        _function_choice(each["name"], names)
        for each in choice["tools"]
        if isinstance(each, dict) and each.get("type") == "function" and isinstance(each.get("name"), str)
    ]
    return {"type": "allowed_tools", "allowed_tools": {"mode": choice["mode"], "tools": allowed}}


def _function_choice(name: str, names: Mapping[str, FunctionName]) -> JsonObject:
    if name not in names:
        name = next((joined for joined, each in names.items() if each.name == name), name)
    return {"type": "function", "function": {"name": name}}
