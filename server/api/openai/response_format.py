"""``response_format``: the format that a reply must have."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from server.api.core.bodies.fields import Text
from server.api.core.grammars.json_schema import check_references, check_schema, check_strict, schema_text
from server.engine.interface import GrammarSpec


class JsonSchemaFormat(BaseModel):
    """A JSON schema with a name. The reply follows it as far as a grammar can; exactly with ``strict``."""

    model_config = ConfigDict(strict=True)

    name: Text = Field(min_length=1)
    description: Text | None = None
    json_schema: Annotated[dict[str, Any], AfterValidator(check_schema), AfterValidator(check_references)] = Field(
        alias="schema"
    )
    strict: bool | None = None

    @model_validator(mode="after")
    def need_grammar(self) -> "JsonSchemaFormat":
        if self.strict:
            check_strict(self.json_schema, self.name)
        return self


class ResponseFormat(BaseModel):
    """Any text, any JSON object, or JSON that follows a schema."""

    model_config = ConfigDict(strict=True)

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = Field(None, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def need_object(cls, value: object) -> object:
        if not isinstance(value, dict):
            raise ValueError('must be an object, such as {"type": "json_object"}')  # noqa: TRY004  pydantic expects ValueError
        return value

    @field_validator("json_schema")
    @classmethod
    def need_schema(cls, json_schema: JsonSchemaFormat | None, info: ValidationInfo) -> JsonSchemaFormat | None:
        if info.data.get("type") == "json_schema" and json_schema is None:
            raise ValueError("is required if the type is 'json_schema'")
        return json_schema

    @property
    def spec(self) -> GrammarSpec | None:
        """The grammar of the reply, if there is one."""
        if self.type == "json_schema" and self.json_schema is not None:
            return GrammarSpec("json_schema", schema_text(self.json_schema.json_schema))
        return GrammarSpec("json_object") if self.type == "json_object" else None
