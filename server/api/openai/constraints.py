"""Constraints on the text of a reply, in the fields of vLLM and llama.cpp."""

import json
import re
from collections.abc import Callable
from typing import Annotated, Any

from llguidance.gbnf_to_lark import gbnf_to_lark
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from server.api.core.bodies.fields import Text
from server.api.core.bodies.nulls import NullableBody
from server.api.core.grammars.json_schema import check_references, check_schema, schema_text
from server.engine.interface import GrammarSpec

MAX_CHOICES = 1_000
MAX_GRAMMAR = 1 << 16  # characters
LARK = re.compile(r"(?m)^[^\S\n]*(%llguidance\b|start\s*:)")  # llguidance's own takes a minute for 65,536 line breaks
LARK_OPTIONS = re.compile(r"(?m)^[^\S\n]*%llguidance.*$")  # the engine has its own


def schema_of(value: object) -> object:
    """Take a schema as an object, or as text."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        raise ValueError("must be a JSON schema, but it is a text that is not JSON") from None


def lark_of(grammar: str) -> str:
    """Convert a grammar in GBNF to Lark; one in Lark stays as it is."""
    try:
        return LARK_OPTIONS.sub("", grammar if LARK.search(grammar) else gbnf_to_lark(grammar)).strip()
    except Exception as error:  # noqa: BLE001  it raises bare ones for rules that are missing, or come twice
        raise ValueError(f"must be a grammar in GBNF or Lark: {' '.join(str(error).split())}") from None


def lark_regex(pattern: str) -> str:
    """Return the grammar of the texts that a regular expression matches as a whole."""
    escaped = pattern.replace("\n", r"\n")
    slashes = "".join(part if len(part) > 1 or part != "/" else r"\/" for part in _parts(escaped))
    return f"start: /(?:{slashes})/"


def _parts(pattern: str) -> list[str]:
    """Split a regular expression into characters, each with the backslash before it."""
    parts: list[str] = []
    for character in pattern:
        if parts and parts[-1] == "\\":
            parts[-1] += character
        else:
            parts.append(character)
    return parts


def lark_choices(choices: list[str]) -> str:
    """Return the grammar of some texts."""
    return f"start: CHOICE\nCHOICE: {' | '.join(json.dumps(choice, ensure_ascii=False) for choice in choices)}"


Schema = Annotated[
    dict[str, Any], BeforeValidator(schema_of), AfterValidator(check_schema), AfterValidator(check_references)
]
Regex = Annotated[Text, Field(min_length=1, max_length=MAX_GRAMMAR)]
Choices = Annotated[list[Annotated[Text, Field(min_length=1)]], Field(min_length=1, max_length=MAX_CHOICES)]
Grammar = Annotated[Text, Field(min_length=1, max_length=MAX_GRAMMAR), AfterValidator(lark_of)]


class StructuredOutputs(NullableBody, BaseModel):
    """vLLM's ``structured_outputs``: exactly one constraint."""

    model_config = ConfigDict(strict=True, extra="forbid")

    schema_: Schema | None = Field(None, alias="json")
    regex: Regex | None = None
    choice: Choices | None = None
    grammar: Grammar | None = None
    json_object: bool = False
    # Ways to compile, which make no difference here: the server has one of its own.
    disable_fallback: Any = None
    disable_any_whitespace: Any = None
    disable_additional_properties: Any = None

    @model_validator(mode="after")
    def need_one(self) -> "StructuredOutputs":
        kinds = ("schema_", "regex", "choice", "grammar")
        if sum(getattr(self, kind) is not None for kind in kinds) + self.json_object != 1:
            raise ValueError("must have exactly one of 'json', 'regex', 'choice', 'grammar' and 'json_object'")
        return self

    def spec(self, param: str) -> GrammarSpec:
        if self.json_object:
            return GrammarSpec("json_object", param=param)
        for value, kind in ((self.schema_, "json"), (self.regex, "regex"), (self.choice, "choice")):
            if value is not None:
                return SPECS[kind](value, param)
        return SPECS["grammar"](self.grammar, param)


SPECS: dict[str, Callable[[Any, str], GrammarSpec]] = {
    "json": lambda schema, param: GrammarSpec("json_schema", schema_text(schema), param),
    "regex": lambda pattern, param: GrammarSpec("own", lark_regex(pattern), param),
    "choice": lambda choices, param: GrammarSpec("own", lark_choices(choices), param),
    "grammar": lambda grammar, param: GrammarSpec("own", grammar, param),
}
KINDS = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "json_schema": "json",
    "grammar": "grammar",
}


class Constraints(BaseModel):
    """Fields of which a request may have one, instead of ``response_format``."""

    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | None = None
    guided_regex: Regex | None = None
    guided_choice: Choices | None = None
    guided_grammar: Grammar | None = None
    json_schema: Schema | None = None  # llama.cpp's
    grammar: Grammar | None = None  # llama.cpp's

    @field_validator(*KINDS)
    @classmethod
    def need_no_other(cls, value: Any, info: ValidationInfo) -> Any:
        refuse_second(info)
        return value

    @property
    def constraint_schema(self) -> dict[str, Any] | None:
        """The JSON schema of the field that is given, if it is one."""
        if self.structured_outputs is not None:
            return self.structured_outputs.schema_
        return next((value for name in KINDS if KINDS[name] == "json" and (value := getattr(self, name))), None)

    @property
    def constraint_spec(self) -> GrammarSpec | None:
        """The grammar of the field that is given."""
        if self.structured_outputs is not None:
            return self.structured_outputs.spec("structured_outputs")
        given = ((name, getattr(self, name)) for name in KINDS)
        return next((SPECS[KINDS[name]](value, name) for name, value in given if value is not None), None)


def refuse_second(info: ValidationInfo) -> None:
    """Refuse a constraint if an earlier field has one already."""
    first = next((name for name in ("structured_outputs", *KINDS) if info.data.get(name) is not None), None)
    if first is not None:
        raise ValueError(f"can't be used together with '{first}': leave one of them out")
