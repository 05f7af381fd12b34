"""``response_format``: what a reply has to be."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from server.api.json_schema import check_schema, schema_text
from server.api.openai.fields import Text
from server.engine.request import GrammarSpec


class JsonSchemaFormat(BaseModel):
    """A schema by its name; it is followed to the letter, whether ``strict`` or not."""

    model_config = ConfigDict(strict=True)

    name: Text = Field(min_length=1)
    description: Text | None = None
    json_schema: Annotated[dict[str, Any], AfterValidator(check_schema)] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """Any text, any JSON object, or JSON of a schema."""

    model_config = ConfigDict(strict=True)

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = Field(None, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def need_object(cls, value: object) -> object:
        if not isinstance(value, dict):
            raise ValueError('must be an object, such as {"type": "json_object"}')  # noqa: TRY004  pydantic's way
        return value

    @field_validator("json_schema")
    @classmethod
    def need_schema(cls, json_schema: JsonSchemaFormat | None, info: ValidationInfo) -> JsonSchemaFormat | None:
        if info.data.get("type") == "json_schema" and json_schema is None:
            raise ValueError("is required where the type is 'json_schema'")
        return json_schema

    @property
    def spec(self) -> GrammarSpec | None:
        """The grammar to follow, if there is one."""
        if self.type == "json_schema" and self.json_schema is not None:
            return GrammarSpec("json_schema", schema_text(self.json_schema.json_schema))
        return GrammarSpec("json_object") if self.type == "json_object" else None
