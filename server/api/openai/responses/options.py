"""Types of the fields of ``ResponsesBody``, except its tools."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator

from server.api.core.bodies.fields import Text, encodable
from server.engine.interface import JsonObject

MAX_METADATA = 16


class TextFormat(BaseModel):
    model_config = ConfigDict(strict=True)

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: Text | None = None
    description: Text | None = None
    schema_: dict[str, Any] | None = Field(alias="schema", default=None)
    strict: bool | None = None

    def for_chat(self) -> JsonObject:
        if self.type != "json_schema":
            return {"type": self.type}
        schema = self.model_dump(by_alias=True, exclude={"type"}, exclude_none=True)
        return {"type": self.type, "json_schema": schema}


class TextOptions(BaseModel):
    model_config = ConfigDict(strict=True)

    format: TextFormat = TextFormat(type="text")
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningOptions(BaseModel):
    model_config = ConfigDict(strict=True)

    effort: Text | None = None
    summary: Text | None = None


def input_of(value: object) -> str | list[Any]:
    if isinstance(value, str):
        return encodable(value)
    if not isinstance(value, list) or not value:
        raise ValueError("must be a string or a list of items, and not be empty")
    return value


def metadata_of(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or len(value) > MAX_METADATA:
        raise ValueError(f"must be an object of at most {MAX_METADATA} strings")
    if not all(isinstance(each, str) for each in value.values()):
        raise ValueError("must hold strings only")
    return value


Input = Annotated[str | list[Any], PlainValidator(input_of, json_schema_input_type=str | list[JsonObject])]
Metadata = Annotated[dict[str, str], PlainValidator(metadata_of, json_schema_input_type=dict[str, str])]
Includable = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "message.input_image.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
]
