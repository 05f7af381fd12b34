"""Keywords that no grammar has: the texts that are allowed instead, and what is named as lost."""

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Discriminator, Field, Tag, TypeAdapter

from server.api.core.grammars.exclusive_branches import MAX_READ
from server.api.core.grammars.relaxed_schema import Relaxed, relax

S, INT = {"type": "string"}, {"type": "integer"}


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    name: str


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    name: str


class Owner(BaseModel):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]


class Fish(BaseModel):
    name: str
    litres: int


class Bird(BaseModel):
    name: str
    wings: int


TAGGED = Annotated[Annotated[Fish, Tag("fish")] | Annotated[Bird, Tag("bird")], Discriminator(lambda value: "fish")]
DECIMAL = {"type": "string", "pattern": r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"}  # pydantic's, of a Decimal
SPECIES = Literal["cat", "dog"]


def schema_of(kind):
    return TypeAdapter(kind).json_schema()


def obj(required=(), **properties):
    return {"type": "object", "properties": properties, "required": [*required]}


def one_of(*branches, **more):
    return {"oneOf": [*branches], **more}


# A schema, a text that follows it, and one that does not; nothing of the schema is lost.
SAME = {
    "a union with a discriminator": (schema_of(Owner), '{"pet":{"kind":"dog","name":"a"}}', '{"pet":{"name":"a"}}'),
    "a union of models with other fields": (schema_of(TAGGED), '{"name":"a","wings":2}', '{"name":"a"}'),
    "a union of types": (one_of(S, INT), "7", "true"),
    "a union of unions": (one_of(one_of(S, INT), {"type": "null"}), "null", "true"),
    "a union of constants": (one_of({"const": "a"}, {"enum": ["b", "c"]}), '"c"', '"d"'),
    "a union of closed objects": (
        one_of(obj("a", a=S) | {"additionalProperties": False}, obj("ab", a=S, b=S)),
        '{"a":"x","b":"y"}',
        '{"b":"y"}',
    ),
    "keys of an enumeration": (schema_of(dict[SPECIES, int]), '{"cat":1,"dog":2}', '{"fox":1}'),
    "keys of a pattern": (
        {"type": "object", "propertyNames": {"pattern": "^x[0-9]$"}, "additionalProperties": INT},
        '{"x1":1}',
        '{"y":1}',
    ),
    "keys of any text": ({"type": "object", "propertyNames": S, "additionalProperties": INT}, '{"a":1}', '{"a":"b"}'),
    "no further properties": (obj("a", a=S) | {"unevaluatedProperties": False}, '{"a":"x"}', '{"a":"x","b":1}'),
    "any further properties": (obj("a", a=S) | {"unevaluatedProperties": True}, '{"a":"x","b":1}', '{"b":1}'),
    "no further items": (
        {"type": "array", "prefixItems": [S], "minItems": 1, "unevaluatedItems": False},
        '["a"]',
        '["a","b"]',
    ),
    "a property that must not be": (obj("a", a=S, b={"not": {}}), '{"a":"x"}', '{"a":"x","b":1}'),
    "unique items that need not be": ({"type": "array", "items": S, "uniqueItems": False}, '["a","a"]', "[1]"),
    "limits of properties that hold anyway": (obj("a", a=S, b=S) | {"minProperties": 1}, '{"a":"x"}', "{}"),
    "a recursive reference": (
        {"type": "object", "properties": {"next": {"$recursiveRef": "#"}}, "$recursiveAnchor": True},
        '{"next":{"next":{}}}',
        '{"next":1}',
    ),
    "a reference into a union": (
        obj("ab", a=one_of(S, obj("n", n=INT)), b={"$ref": "#/properties/a/oneOf/1"}),
        '{"a":"x","b":{"n":1}}',
        '{"a":"x","b":"y"}',
    ),
    "a union that refers into itself": (
        one_of(INT, {"type": "array", "items": {"$ref": "#/oneOf/1"}}),
        "[[]]",
        "[1]",
    ),
    "marks of look-around among characters": ({"type": "string", "pattern": r"^[(?=]\(\?=$"}, '"?(?="', '"?"'),
}


@pytest.mark.parametrize(("schema", "text", "other"), SAME.values(), ids=SAME)
def test_what_other_keywords_can_say_is_enforced(takes, schema, text, other):
    assert relax(schema).losses == ()
    assert takes(schema, text)
    assert not takes(schema, other)


# A schema, what is lost, a text of the schema, and one that is refused although something is lost.
LESS = {
    "oneOf": (one_of(obj("a", a=S), obj("a", a=S, b=S)), ["'oneOf'"], '{"a":"x","b":"y"}', '{"b":"y"}'),
    "oneOf of the same values": (one_of(INT, {"type": "number"}), ["'oneOf'"], "7", '"a"'),
    "oneOf beside anyOf": (
        {"anyOf": [{"const": 1}, {"const": 2}], "oneOf": [{"enum": [2, 3]}, {"enum": [2.0, 4]}]},
        ["'oneOf'"],
        "2",
        "1",
    ),
    "oneOf of objects that are closed together": (
        {"allOf": [obj("n", n=INT), one_of(obj("a", a=S), obj("b", b=S))]},
        ["'oneOf' of 'allOf[1]'"],
        '{"n":1,"a":"x"}',
        '{"n":1}',
    ),
    "uniqueItems": (
        obj("a", a={"type": "array", "items": S, "uniqueItems": True}),
        ["'uniqueItems' of 'properties.a'"],
        '{"a":["x"]}',
        '{"a":[1]}',
    ),
    "not": ({"type": "string", "not": {"const": "a"}}, ["'not'"], '"b"', "1"),
    "if": (obj("a", a=S, b=S) | {"if": obj("b"), "then": obj("a"), "else": {}}, ["'if'"], '{"a":"x"}', "{}"),
    "contains": (
        {"type": "array", "items": S, "contains": {"const": "a"}, "minContains": 2},
        ["'contains'"],
        '["a","a"]',
        '["a"]',
    ),
    "propertyNames": (
        {"type": "object", "propertyNames": {"maxLength": 2}, "additionalProperties": INT},
        ["'propertyNames'"],
        '{"a":1}',
        '{"a":"x"}',
    ),
    "dependentRequired": (
        obj("a", a=S, b=S) | {"dependentRequired": {"a": ["b"]}},
        ["'dependentRequired'"],
        '{"a":"x","b":"y"}',
        "{}",
    ),
    "dependentSchemas": (
        obj("a", a=S, b=S) | {"dependentSchemas": {"a": obj("b")}},
        ["'dependentSchemas'"],
        '{"a":"x","b":"y"}',
        "{}",
    ),
    "unevaluatedProperties": (
        obj("a", a=S) | {"unevaluatedProperties": INT},
        ["'unevaluatedProperties'"],
        '{"a":"x","b":1}',
        '{"b":1}',
    ),
    "minProperties and maxProperties": (
        obj("a", a=S, b=S, c=S) | {"minProperties": 2, "maxProperties": 2},
        ["'minProperties'", "'maxProperties'"],
        '{"a":"x","b":"y"}',
        "{}",
    ),
    "look-around": (DECIMAL, ["'pattern'"], '"1.5"', "1.5"),
    "a back reference": ({"type": "string", "pattern": r"^(a)\1$"}, ["'pattern'"], '"aa"', "1"),
    "look-around in names": (
        {"type": "object", "patternProperties": {"^(?!x)": S}},
        ["'patternProperties'"],
        '{"a":"b"}',
        "[]",
    ),
    "a schema that another one refers to": (
        {"type": "array", "prefixItems": [S, {"$ref": "#/contains"}], "contains": INT, "minItems": 2},
        ["'contains'"],
        '["a",1]',
        '["a","b"]',
    ),
    "$dynamicRef": (obj("a", a={"$dynamicRef": "#x"}), ["'$dynamicRef' of 'properties.a'"], '{"a":1}', "{}"),
}


@pytest.mark.parametrize(("schema", "lost", "text", "other"), LESS.values(), ids=LESS)
def test_what_no_grammar_has_is_left_out_and_named(takes, schema, lost, text, other):
    assert [str(loss) for loss in relax(schema).losses] == lost
    assert takes(schema, text)
    assert not takes(schema, other)


def test_values_that_are_no_schemas_stay_as_they_are():
    schema = {"const": {"not": {}}, "enum": [{"uniqueItems": True}], "properties": {"if": S, "oneOf": S}}
    assert relax(schema) == Relaxed(schema, ())


def test_an_impossible_schema_stays_impossible():
    assert relax({"not": {}}).schema == {"enum": []}


def test_a_proof_that_takes_too_long_is_given_up():
    branch = {"allOf": [{"anyOf": [{"const": number} for number in range(200)]}] * 2}
    assert MAX_READ < 200 * 200
    assert relax(one_of(branch, branch)).keywords == ["oneOf"]
