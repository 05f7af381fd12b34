"""Values that a model writes as text get the type in the tool's schema."""

from __future__ import annotations

import json

import pytest

from server.api.tool_parsers.argument_values import typed_json, types_of

CASES = [
    ("3", {"type": "integer"}, 3),
    ("3", {"type": "string"}, "3"),
    ("3", {}, 3),
    ("hello", {}, "hello"),
    ("hello", {"type": "integer"}, "hello"),
    ("2.5", {"type": ["number", "null"]}, 2.5),
    ("null", {"type": ["string", "null"]}, None),
    ("3", {"type": ["string", "null"]}, "3"),
    ("3", {"anyOf": [{"type": "string"}, {"type": "integer"}]}, 3),
    ("True", {"type": "boolean"}, True),
    ("true", {"type": "boolean"}, True),
    ("True", {"type": "string"}, "True"),
    ('{"a": [1]}', {"type": "object"}, {"a": [1]}),
    ("{'a': None, 'b': (1, 2)}", {"type": "object"}, {"a": None, "b": [1, 2]}),
    ("[1, 2]", {"type": "array"}, [1, 2]),
    ("1", {"enum": ["1", "2"]}, "1"),
    ("NaN", {"type": "number"}, "NaN"),
    ("f()", {"type": "object"}, "f()"),
    ("1if 2else 3", {"type": "integer"}, "1if 2else 3"),
    ("[" * 100_000, {"type": "array"}, "[" * 100_000),
    (' two\n"lines" ', {"type": "string"}, ' two\n"lines" '),
]


@pytest.mark.parametrize(("raw", "schema", "value"), CASES)
def test_a_value_gets_the_type_of_the_schema_if_possible(raw: str, schema: dict[str, object], value: object) -> None:
    assert json.loads(typed_json(raw, schema)) == value


def test_types_are_read_from_every_form_of_a_schema() -> None:
    assert types_of({"oneOf": [{"type": "null"}, {"enum": ["a"]}]}) == {"null", "string"}
    assert types_of({"type": 3, "anyOf": "x", "enum": []}) == set()
