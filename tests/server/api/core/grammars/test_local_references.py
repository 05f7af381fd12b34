"""References of schemas: those of the standard, those that libraries break, and those that lead nowhere."""

import pytest

from server.api.core.grammars.json_schema import check_references
from server.api.core.grammars.local_references import MissingSchemaError, local_references

CAT = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
RIGHT, WRONG = '{"pet":{"name":"Tom"}}', '{"pet":{"age":1}}'


def pet(ref, **more):
    return {"type": "object", "properties": {"pet": {"$ref": ref}}, "required": ["pet"], **more}


@pytest.mark.parametrize(
    "schema",
    [
        pet("#/$defs/C%61t", **{"$defs": {"Cat": CAT}}),
        pet("#Cat", **{"$defs": {"C": {"$anchor": "Cat", **CAT}}}),
        pet("#Cat", definitions={"C": {"$id": "#Cat", **CAT}}),
        pet("cat.json", **{"$id": "http://a.b/pet.json", "$defs": {"C": {"$id": "cat.json", **CAT}}}),
        pet("http://a.b/pet.json#/$defs/C", **{"$id": "http://a.b/pet.json", "$defs": {"C": CAT}}),
        pet("b", **{"$defs": {"B": {"$id": "b", "$ref": "#/$defs/C", "$defs": {"C": CAT}}, "C": {"type": "null"}}}),
        pet("#/$defs/a~1b~0c", **{"$defs": {"a/b~c": CAT}}),
    ],
    ids=["escaped", "anchor", "anchor of draft 7", "relative id", "absolute id", "within another id", "slash"],
)
def test_references_of_the_standard_are_followed(takes, schema):
    assert (takes(schema, RIGHT), takes(schema, WRONG)) == (True, False)


@pytest.mark.parametrize(
    "ref",
    [
        "/$defs/Cat",
        "$defs/Cat",
        "#$defs/Cat",
        "Cat",
        "#/definitions/Cat",
        "/definitions/Cat",
        "#/components/schemas/Cat",
    ],
)
def test_a_broken_pointer_means_the_definition_of_its_name(takes, ref):
    schema = pet(ref, **{"$defs": {"Cat": CAT}})
    assert (takes(schema, RIGHT), takes(schema, WRONG)) == (True, False)


@pytest.mark.parametrize("name", ["List[int]", "My Cat", "Käse", "100%"])
def test_a_name_that_no_uri_can_hold_is_found(takes, name):
    schema = pet(f"#/$defs/{name}", **{"$defs": {name: CAT}})
    assert (takes(schema, RIGHT), takes(schema, WRONG)) == (True, False)


def test_definitions_of_a_schema_within_another_are_found(takes):
    inner = {"$ref": "#/$defs/Cat", "$defs": {"Cat": {"allOf": [{"$ref": "#/$defs/Named"}]}, "Named": CAT}}
    schema = {"type": "object", "properties": {"pet": inner}, "required": ["pet"], "$defs": {"Other": {}}}
    assert (takes(schema, RIGHT), takes(schema, WRONG)) == (True, False)


def test_the_nearest_of_several_definitions_is_meant():
    schema = {"properties": {"pet": {"$ref": "Cat", "$defs": {"Cat": CAT}}}, "$defs": {"Cat": {"type": "null"}}}
    assert local_references(schema)["properties"]["pet"]["$ref"] == "#/properties/pet/$defs/Cat"


@pytest.mark.parametrize("ref", ["#/$defs/Dog", "/$defs/Dog", "http://a.b/cat.json", "http://[", "#Dog", "x/Cat", 5])
def test_a_reference_that_leads_nowhere_is_named_with_its_place(ref):
    with pytest.raises(MissingSchemaError, match="but holds no such schema") as raised:
        check_references(pet(ref, **{"$defs": {"Cat": CAT}}))
    assert str(raised.value).startswith(f"refers to {ref!r} at 'properties.pet'")


def test_what_nothing_uses_may_lead_nowhere(takes):
    assert takes(pet("Cat", **{"$defs": {"Cat": CAT, "Dog": {"$ref": "http://a.b/dog.json"}}}), RIGHT)


def test_values_and_names_are_no_references():
    schema = {"properties": {"$ref": {"const": {"$ref": "/none"}}, "$id": {"default": {"$id": "a"}}}}
    assert local_references(schema) == schema
