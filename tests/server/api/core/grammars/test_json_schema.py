"""Limits of JSON schemas, and their form for grammars."""

import json

import pytest

from server.api.core.grammars.json_schema import (
    MAX_DEPTH,
    MAX_PROPERTIES,
    MAX_SCHEMA_BYTES,
    MAX_VALUES,
    WHITE_SPACE,
    check_schema,
    schema_text,
)


def nested(depth):
    schema = {}
    for _ in range(depth - 1):
        schema = {"items": schema}
    return schema


def multiples(*values):
    return {"anyOf": [{"type": "number", "multipleOf": value} for value in values]}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        nested(MAX_DEPTH),
        {"enum": list(range(MAX_VALUES - 1))},
        {"description": "x" * (MAX_SCHEMA_BYTES - 100)},
        {"properties": {str(number): {} for number in range(MAX_PROPERTIES)}},
        multiples(5, 10, 100, 1000),
        multiples(*[0.25] * 9, 0.01, 1),
        multiples(10_000),
        multiples(0, -3, "x", None),
    ],
)
def test_schemas_within_the_limits_pass(schema):
    assert check_schema(schema) is schema


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (nested(MAX_DEPTH + 1), "must not be nested deeper than 64 levels"),
        (nested(20_000), "must not be nested deeper"),
        ({"enum": list(range(MAX_VALUES))}, "must not hold more than 128 KiB, or more than 10000 values"),
        (dict.fromkeys(map(str, range(100_000)), 1), "must not hold more than"),
        ({"enum": [{"a": [0] * 100}] * 100}, "must not hold more than"),
        ({"description": "x" * (MAX_SCHEMA_BYTES + 1)}, "must not hold more than"),
        ({"x" * (MAX_SCHEMA_BYTES + 1): 1}, "must not hold more than"),
        (
            {"items": {"properties": {str(number): {} for number in range(MAX_PROPERTIES + 1)}}},
            "must not have more than 1000 properties in one object",
        ),
        (multiples(10_001), "must have values of 'multipleOf' with fewer digits"),
        (multiples(101, 103), "must have values of 'multipleOf' with fewer digits"),
        (multiples(3, 1e-9), "must have values of 'multipleOf' with fewer digits"),
        (multiples(1e308), "must have values of 'multipleOf' with fewer digits"),
        (multiples(0.123456789), "must have values of 'multipleOf' with fewer digits"),
    ],
)
def test_schemas_beyond_the_limits_are_refused(schema, message):
    with pytest.raises(ValueError, match=message):
        check_schema(schema)


def test_white_space_is_bounded_whatever_a_schema_says():
    found = json.loads(schema_text({"type": "object", "x-guidance": {"whitespace_pattern": r"\s*", "lenient": True}}))
    assert found == {"type": "object", "x-guidance": {**WHITE_SPACE, "lenient": True}}
    assert json.loads(schema_text({"x-guidance": 5})) == {"x-guidance": WHITE_SPACE}


def test_formats_that_are_not_followed_are_annotations():
    secret = {"type": "string", "format": "password"}
    schema = {
        "properties": {"format": {"format": "email"}, "const": secret, "literal": {"const": secret}},
        "prefixItems": [secret, {"enum": [secret]}],
        "required": ["format"],
    }
    found = json.loads(schema_text(schema))
    assert found == {
        "properties": {"format": {"format": "email"}, "const": {"type": "string"}, "literal": {"const": secret}},
        "prefixItems": [{"type": "string"}, {"enum": [secret]}],
        "required": ["format"],
        "additionalProperties": False,
        "x-guidance": WHITE_SPACE,
    }
