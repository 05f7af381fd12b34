"""Objects that a schema leaves open are closed, in the texts that the grammar of the schema allows."""

import json

import pytest

from server.api.core.grammars.closed_objects import MAX_ADDED, close_objects, find_schema

PERSON = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
AGE = {"properties": {"age": {"type": "integer"}}, "required": ["age"]}
CITY = {"properties": {"city": {"type": "string"}}, "required": ["city"]}
DEFS = {"$defs": {"Person": PERSON, "Named": {"allOf": [{"$ref": "#/$defs/Person"}, AGE]}}}
REF = {"$ref": "#/$defs/Person"}


CLOSED = {
    "plain": (PERSON, '{"name":"a"}', '{"name":"a","x":1}'),
    "without a property": ({"type": "object", "properties": {}}, "{}", '{"x":1}'),
    "in an array": ({"type": "array", "items": PERSON}, '[{"name":"a"}]', '[{"name":"a","x":1}]'),
    "in a property": (
        {"type": "object", "properties": {"who": PERSON}},
        '{"who":{"name":"a"}}',
        '{"who":{"name":"a","x":1}}',
    ),
    "by reference": (REF | DEFS, '{"name":"a"}', '{"name":"a","x":1}'),
    "or null": ({"anyOf": [REF, {"type": "null"}], **DEFS}, '{"name":"a"}', '{"name":"a","x":1}'),
    "by patterns": (
        {"type": "object", "patternProperties": {"^x[0-9]$": {"type": "integer"}}},
        '{"x1":1,"x2":2}',
        '{"y":1}',
    ),
    "under a property called properties": (
        {"type": "object", "properties": {"properties": PERSON}},
        '{"properties":{"name":"a"}}',
        '{"properties":{"name":"a","x":1}}',
    ),
    "of several schemas": (
        {"allOf": [REF, AGE], **DEFS},
        '{"name":"a","age":3}',
        '{"name":"a","age":3,"x":1}',
    ),
    "of several schemas by reference": (
        {"allOf": [{"$ref": "#/$defs/Named"}, CITY], **DEFS},
        '{"name":"a","age":3,"city":"b"}',
        '{"name":"a","age":3,"city":"b","x":1}',
    ),
    "of several schemas, without definitions": (
        {"properties": {"a": PERSON}, "allOf": [{"$ref": "#/properties/a"}, AGE], "$defs": []},
        '{"name":"a","age":3}',
        '{"name":"a","age":3,"x":1}',
    ),
    "of a schema and one of two more": (
        PERSON | {"anyOf": [AGE, CITY]},
        '{"name":"a","city":"b"}',
        '{"name":"a","city":"b","age":3}',
    ),
    "of a schema and required alternatives": (
        {"type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}}}
        | {"anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        '{"b":2}',
        '{"b":2,"x":1}',
    ),
    "referred to both alone and with others": (
        {"type": "object", "properties": {"one": REF, "both": {"$ref": "#/$defs/Named"}}, **DEFS},
        '{"one":{"name":"a"},"both":{"name":"a","age":3}}',
        '{"one":{"name":"a","age":3}}',
    ),
}


@pytest.mark.parametrize(("schema", "own", "more"), CLOSED.values(), ids=CLOSED)
def test_objects_have_only_the_properties_that_their_schema_names(takes, schema, own, more):
    assert takes(schema, own)
    assert not takes(schema, more)


OPEN = {
    "with true": PERSON | {"additionalProperties": True},
    "with a schema": PERSON | {"additionalProperties": {"type": "integer"}},
    "with nothing named": {"type": "object"},
    "in one of several schemas": {"allOf": [REF, AGE | {"additionalProperties": True}], **DEFS},
    "beside alternatives": PERSON | {"additionalProperties": True, "anyOf": [AGE, {"required": ["name"]}]},
}


@pytest.mark.parametrize("schema", OPEN.values(), ids=OPEN)
def test_objects_that_the_schema_opens_stay_open(takes, schema):
    assert takes(schema, '{"name":"a","age":3,"x":1}')


def test_recursive_schemas_are_closed(takes):
    node = {
        "type": "object",
        "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["next"],
    }
    assert takes(node, '{"next":{"next":null}}')
    assert not takes(node, '{"next":{"next":null,"x":1}}')


def test_a_schema_that_includes_itself_comes_to_an_end():
    schema = {"$defs": {"A": {"properties": {"a": {}}, "allOf": [{"$ref": "#/$defs/A"}, AGE]}}, "$ref": "#/$defs/A"}
    assert close_objects(schema)["$ref"] == "#/$defs/A"


def test_values_that_are_no_schemas_stay_as_they_are():
    literal = {"enum": [{"properties": {"a": 1}}], "default": {"properties": {}}}
    assert close_objects({"properties": {"x": literal}})["properties"]["x"] == literal


def test_closing_does_not_blow_a_schema_up():
    names = {str(number): True for number in range(1000)}
    schema = {"properties": names, "anyOf": [{"properties": {f"x{number}": True}} for number in range(500)]}
    assert len(json.dumps(close_objects(schema))) < 20 * len(json.dumps(schema)) + 20 * MAX_ADDED


def test_a_long_chain_of_references_is_followed():
    defs = {str(number): {"allOf": [{"$ref": f"#/$defs/{number + 1}"}, AGE]} for number in range(3000)}
    close_objects({"$ref": "#/$defs/0", "properties": {"a": {}}, "$defs": defs | {"3000": PERSON}})


@pytest.mark.parametrize(("step", "found"), [("0", PERSON), ("1", AGE), ("2", None), ("01", None), ("1" * 5000, None)])
def test_a_reference_names_a_schema_of_a_list_by_its_index(step: str, found: dict | None) -> None:
    assert find_schema({"anyOf": [PERSON, AGE]}, f"#/anyOf/{step}") == found
