"""Recursive references beside other keywords: the texts that are allowed, and what is left as it is."""

import json
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from server.api.core.grammars.recursive_references import MAX_COPIED, separate_references


class Leaf(BaseModel):
    kind: Literal["leaf"] = "leaf"
    value: int


class Node(BaseModel):
    kind: Literal["node"] = "node"
    left: "Tree"


Tree = Annotated[Leaf | Node, Field(discriminator="kind")]


class Garden(BaseModel):
    tree: Tree = Field(description="The only one.")


def chain(**beside):
    """Return the schema of an object whose next one has other keywords, too."""
    after = {"anyOf": [{"$ref": "#/$defs/Link", **beside}, {"type": "null"}]}
    link = {"type": "object", "properties": {"n": {"type": "integer"}, "next": after}}
    return {"$ref": "#/$defs/Link", "$defs": {"Link": link}}


def linked(**after):
    """Return the schema of an object that is followed by another in a place with other keywords, too."""
    link = {"type": "object", "properties": {"n": {"type": "integer"}, "next": after}}
    return {"$ref": "#/$defs/Link", "$defs": {"Link": link}}


LINK, END = {"$ref": "#/$defs/Link"}, {"type": "object", "properties": {"end": {"const": True}}, "required": ["end"]}
ONCE, TWICE = '{"next":{"n":1}}', '{"next":{"n":1,"next":{"n":2}}}'
# A schema, a text that follows it, and one that does not.
ALLOWED = {
    "a union with a discriminator": (
        Garden.model_json_schema(),
        '{"tree":{"kind":"node","left":{"kind":"node","left":{"kind":"leaf","value":1}}}}',
        '{"tree":{"kind":"node","left":{"value":1}}}',
    ),
    "a required property": (chain(required=["n"]), TWICE, '{"next":{"n":1,"next":{}}}'),
    "a type": (chain(type="object"), TWICE, '{"next":{"next":1}}'),
    "a closed object": (chain(allOf=[{"required": ["n"]}]), TWICE, '{"next":{"n":1,"next":{}}}'),
    "more properties": (
        chain(properties={"m": {"type": "null"}}),
        '{"next":{"next":{"m":null},"m":null}}',
        '{"next":{"next":{"m":1},"m":null}}',
    ),
    "an unknown keyword": (chain(unit="m"), TWICE, '{"next":{"next":1}}'),
    "OpenAPI's annotations": (chain(nullable=True, **{"x-order": [1]}), TWICE, '{"next":{"next":1}}'),
    "a type beside a union": (linked(type="object", anyOf=[LINK, {"type": "null"}]), TWICE, '{"next":{"next":null}}'),
    "a required property beside a union": (
        linked(required=["n"], anyOf=[LINK, END]),
        TWICE,
        '{"next":{"n":1,"next":{}}}',
    ),
    "a type beside a union within a union": (
        linked(type="object", anyOf=[{"anyOf": [LINK, {"type": "null"}]}, END]),
        '{"next":{"next":{"end":true}}}',
        '{"next":{"next":null}}',
    ),
    "a type beside allOf": (linked(type="object", allOf=[LINK]), TWICE, '{"next":{"next":1}}'),
    "another schema in allOf": (linked(allOf=[{"required": ["n"]}, LINK]), TWICE, '{"next":{"n":1,"next":{}}}'),
    "a union in allOf": (
        linked(allOf=[{"anyOf": [LINK, {"type": "null"}]}, {"type": "object"}]),
        TWICE,
        '{"next":{"next":null}}',
    ),
    "a branch that takes anything": (linked(required=["n"], anyOf=[LINK, True]), TWICE, '{"next":{}}'),
    "a type beside the union of the root": (
        {"type": "object", "anyOf": [LINK, END], "$defs": {"Link": linked(**{"$ref": "#"})["$defs"]["Link"]}},
        '{"next":{"n":1,"next":{"end":true}}}',
        '{"next":{"next":1}}',
    ),
    "of the root": (
        {"type": "object", "properties": {"next": {"$ref": "#", "required": ["next"]}}},
        "{}",
        '{"next":{}}',
    ),
}


@pytest.mark.parametrize(("schema", "text", "other"), ALLOWED.values(), ids=ALLOWED)
def test_keywords_beside_a_recursive_reference_are_enforced(takes, schema, text, other):
    assert takes(schema, text)
    assert not takes(schema, other)


def left_alone(schema):
    return separate_references(schema) == schema


def test_references_that_end_stay_as_they_are():
    assert left_alone({"properties": {"a": {"$ref": "#/$defs/A", "minimum": 1}}, "$defs": {"A": {"type": "integer"}}})


def test_annotations_stay_beside_a_reference():
    assert left_alone(chain(description="The one after it."))


def test_unions_of_references_that_end_stay_as_they_are():
    definitions = {"A": {"type": "integer"}, "B": {"type": "string"}}
    union = {"minimum": 1, "anyOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}]}
    assert left_alone({"properties": {"a": union}, "$defs": definitions})


def test_a_schema_that_is_a_part_of_itself_has_a_limit():
    loop = {"type": "object", "description": "x" * (MAX_COPIED // 20), "allOf": [{"$ref": "#/$defs/A"}]}
    assert len(json.dumps(separate_references({"$ref": "#/$defs/A", "$defs": {"A": loop}}))) < 10 * MAX_COPIED


def test_references_to_nothing_but_each_other_are_not_followed():
    assert left_alone({"$defs": {"A": {"$ref": "#/$defs/A", "minimum": 1}}, "$ref": "#/$defs/A"})


def test_copies_have_a_limit():
    links = [{"$ref": "#", "minProperties": number} for number in range(100)]
    schema = {"anyOf": links, "description": "x" * (MAX_COPIED // 50)}
    assert len(json.dumps(separate_references(schema))) < 3 * MAX_COPIED
