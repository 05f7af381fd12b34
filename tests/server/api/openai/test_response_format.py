"""Validation of ``response_format``, and the grammars for it."""

import json

import pytest

from server.api.core.grammars.json_schema import WHITE_SPACE
from server.engine.interface import GrammarSpec

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}


def with_schema(schema, **fields):
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **fields}}


@pytest.fixture(params=["complete", "chat"])
def send(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("value", [None, {"type": "text"}, {"type": "text", "json_schema": None}])
def test_the_text_format_has_no_grammar(send, fake, value):
    assert send(response_format=value).status_code == 200
    assert fake.codec.grammars == []
    assert fake.engine.requests[0].sampling.grammar is None


@pytest.mark.parametrize("fields", [{}, {"strict": True}, {"strict": False, "description": "it"}, {"strict": None}])
def test_a_schema_is_compiled_and_every_choice_follows_it(send, fake, fields):
    assert send(response_format=with_schema(SCHEMA, **fields), n=3).status_code == 200
    (spec,) = fake.codec.grammars
    assert (spec.kind, spec.param) == ("json_schema", "response_format")
    assert json.loads(spec.text) == {**SCHEMA, "additionalProperties": False, "x-guidance": WHITE_SPACE}
    grammars = [request.sampling.grammar for request in fake.engine.requests]
    assert grammars[0] is not None
    assert grammars == grammars[:1] * 3


def test_any_object_has_a_grammar_of_its_own(send, fake):
    assert send(response_format={"type": "json_object"}).status_code == 200
    assert fake.codec.grammars == [GrammarSpec("json_object")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "param", "message"),
    [
        ("json", "response_format", "must be an object"),
        ([], "response_format", "must be an object"),
        (True, "response_format", "must be an object"),
        ({}, "response_format.type", "is required"),
        ({"type": "xml"}, "response_format.type", "'text', 'json_object' or 'json_schema', got 'xml'"),
        ({"type": "json_schema"}, "response_format.json_schema", "is required if the type is 'json_schema'"),
        ({"type": "json_schema", "json_schema": None}, "response_format.json_schema", "is required if"),
        ({"type": "json_schema", "json_schema": {"schema": {}}}, "response_format.json_schema.name", "is required"),
        ({"type": "json_schema", "json_schema": {"name": "a"}}, "response_format.json_schema.schema", "is required"),
        (with_schema({}, name=""), "response_format.json_schema.name", "at least 1 character"),
        (with_schema({}, strict="yes"), "response_format.json_schema.strict", "valid boolean"),
        (with_schema([]), "response_format.json_schema.schema", "valid dictionary"),
        (with_schema(True), "response_format.json_schema.schema", "valid dictionary"),
        (with_schema({"enum": [0] * 20_000}), "response_format.json_schema.schema", "must not hold more than"),
    ],
)
def test_bad_shapes_are_refused_by_name(send, fake, value, param, message):
    response = send(response_format=value)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert message in error["message"]
    assert fake.engine.requests == []


NOT_A = {"type": "object", "properties": {"a": {"type": "string", "not": {"const": "a"}}}}


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": with_schema(NOT_A)},
        {"guided_json": NOT_A},
        {"json_schema": NOT_A},
        {"structured_outputs": {"json": NOT_A}},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_no_grammar_enforces_is_logged(send, caplog, fields):
    assert send(**fields).status_code == 200
    logged = [record.getMessage() for record in caplog.records if "enforcing" in record.getMessage()]
    assert logged == ["Not enforcing 'not of the text': no grammar can."]


def test_a_strict_schema_that_no_grammar_enforces_is_refused_by_its_name(send):
    error = send(response_format=with_schema(NOT_A, strict=True)).json()["error"]
    assert error["param"] == "response_format.json_schema"
    assert "no grammar enforces 'not' of 'properties.a' in the schema of 'answer'" in error["message"]
