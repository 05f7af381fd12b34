"""References that lead nowhere, in the schemas of tools and formats: each dialect answers with one sentence."""

import pytest

ASK = [{"role": "user", "content": "Rain?"}]
BROKEN = {"type": "object", "properties": {"pet": {"$ref": "/$defs/Cat"}}}
REPAIRED = BROKEN | {"$defs": {"Cat": {"type": "string"}}}
SENTENCE = (
    "refers to '/$defs/Cat' at 'properties.pet', but holds no such schema, and the server fetches none: add it to "
    "'$defs', and refer to it as '#/$defs/NAME'."
)


def function(schema, **fields):
    return {"type": "function", "function": {"name": "feed", "parameters": schema, **fields}}


def formats(schema):
    named = {"type": "json_schema", "json_schema": {"name": "pet", "schema": schema}}
    return [
        ("/v1/chat/completions", {"messages": ASK, "response_format": named}, "response_format.json_schema.schema"),
        ("/v1/completions", {"prompt": "a", "response_format": named}, "response_format.json_schema.schema"),
        ("/v1/completions", {"prompt": "a", "guided_json": schema}, "guided_json"),
        ("/v1/completions", {"prompt": "a", "structured_outputs": {"json": schema}}, "structured_outputs.json"),
        (
            "/v1/responses",
            {"input": "a", "text": {"format": {"type": "json_schema", "name": "pet", "schema": schema}}},
            "text.format",
        ),
        (
            "/v1/messages",
            {"messages": ASK, "max_tokens": 9, "output_config": {"format": {"type": "json_schema", "schema": schema}}},
            "output_config.format",
        ),
        ("/api/chat", {"messages": ASK, "format": schema}, "format"),
    ]


def forced(schema):
    own = {"name": "feed", "input_schema": schema}
    flat = {"type": "function", "name": "feed", "parameters": schema}
    return [
        ("/v1/chat/completions", {"messages": ASK, "tools": [function(schema)], "tool_choice": "required"}),
        ("/v1/responses", {"input": "a", "tools": [flat], "tool_choice": "required"}),
        ("/v1/messages", {"messages": ASK, "max_tokens": 9, "tools": [own], "tool_choice": {"type": "any"}}),
    ]


def message_of(response):
    error = response.json()["error"]
    return error if isinstance(error, str) else error["message"]


@pytest.mark.parametrize(("path", "body", "param"), formats(BROKEN))
def test_a_format_that_refers_to_nothing_is_refused_by_its_field(post, path, body, param):
    response = post(path, body)
    assert (response.status_code, message_of(response)) == (400, f"'{param}' {SENTENCE}")


@pytest.mark.parametrize(("path", "body"), forced(BROKEN))
def test_a_tool_that_must_be_called_is_refused_by_its_name(hermes, post, path, body):
    response = post(path, body)
    assert (response.status_code, message_of(response)) == (400, f"The schema of the tool 'feed' {SENTENCE}")


def test_a_strict_tool_is_refused_by_its_field(chat):
    assert message_of(chat(tools=[function(BROKEN, strict=True)])) == f"'tools[0].function' {SENTENCE}"


def test_a_tool_whose_schema_is_not_enforced_is_shown_as_it_is(hermes, chat):
    assert chat(tools=[function(BROKEN)]).status_code == 200


@pytest.mark.parametrize(("path", "body"), [each[:2] for each in (*formats(REPAIRED), *forced(REPAIRED))])
def test_a_pointer_that_lost_its_mark_is_followed(hermes, post, path, body):
    assert post(path, body).status_code == 200
    assert r'"$ref":"#/$defs/Cat"' in hermes.codec.grammars[-1].text
