"""vLLM's and llama.cpp's fields that constrain a reply."""

import json
from contextlib import suppress

import pytest

from server.api.openai.constraints import lark_choices, lark_of, lark_regex
from server.api.tool_parsers.chat_format import ChatFormat, Reasoning
from server.engine.interface import ChatTraits, GrammarSpec
from tests.server.api.grammar_texts import allows, byte_compiler

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
GBNF = 'root ::= "yes" | other\nother ::= "{" [a-z]+ "}"'
LARK = 'start: "yes" | /[0-9]+/'


@pytest.fixture(params=["complete", "chat"])
def send(request):
    return request.getfixturevalue(request.param)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "spec"),
    [
        ({"guided_regex": "a+"}, GrammarSpec("own", lark_regex("a+"), "guided_regex")),
        ({"guided_choice": ["a", "b"]}, GrammarSpec("own", lark_choices(["a", "b"]), "guided_choice")),
        ({"guided_grammar": LARK}, GrammarSpec("own", LARK, "guided_grammar")),
        ({"grammar": GBNF}, GrammarSpec("own", lark_of(GBNF), "grammar")),
        ({"structured_outputs": {"regex": "a+"}}, GrammarSpec("own", lark_regex("a+"), "structured_outputs")),
        ({"structured_outputs": {"choice": ["a"]}}, GrammarSpec("own", lark_choices(["a"]), "structured_outputs")),
        ({"structured_outputs": {"grammar": LARK}}, GrammarSpec("own", LARK, "structured_outputs")),
        ({"structured_outputs": {"json_object": True}}, GrammarSpec("json_object", param="structured_outputs")),
    ],
)
def test_a_constraint_is_compiled_for_the_reply(send, fake, fields, spec):
    assert send(**fields).status_code == 200
    assert fake.codec.grammars == [spec]
    assert fake.engine.requests[0].sampling.grammar is not None


@pytest.mark.slow
@pytest.mark.parametrize("schema", [SCHEMA, json.dumps(SCHEMA)], ids=["object", "text"])
@pytest.mark.parametrize("name", ["guided_json", "json_schema", "structured_outputs"])
def test_a_schema_is_that_of_a_response_format(send, fake, name, schema):
    assert send(**{name: {"json": schema} if name == "structured_outputs" else schema}).status_code == 200
    assert send(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}})
    mine, usual = fake.codec.grammars
    assert (mine.kind, mine.text, mine.param) == (usual.kind, usual.text, name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"guided_json": "{"}, "guided_json", "not JSON"),
        ({"guided_json": [1]}, "guided_json", "valid dictionary"),
        ({"guided_regex": ""}, "guided_regex", "must not be empty"),
        ({"guided_choice": []}, "guided_choice", "must not be empty"),
        ({"guided_choice": [1]}, "guided_choice[0]", "valid string"),
        ({"grammar": "root ::= ("}, "grammar", "must be a grammar in GBNF or Lark"),
        ({"structured_outputs": {}}, "structured_outputs", "exactly one of"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "exactly one of"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag", "not permitted"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_choice", "together with 'guided_regex'"),
        ({"grammar": LARK, "response_format": {"type": "json_object"}}, "response_format", "together with 'grammar'"),
    ],
)
def test_bad_constraints_are_refused_by_name(send, fake, fields, param, message):
    error = send(**fields).json()["error"]
    assert (error["param"], message in error["message"]) == (param, True), error
    assert fake.engine.requests == []


def test_a_format_of_any_text_goes_with_a_constraint(chat, fake):
    assert chat(guided_regex="a", response_format={"type": "text"}).status_code == 200
    assert [spec.param for spec in fake.codec.grammars] == ["guided_regex"]


@pytest.fixture(scope="module")
def takes():
    """Return whether a grammar allows a text as a whole."""
    compiler = byte_compiler()
    return lambda grammar, text: allows(compiler, GrammarSpec("own", grammar), text)


@pytest.mark.parametrize(
    ("grammar", "good", "bad"),
    [
        (lark_regex("^[0-9]{2}$"), "12", "123"),
        (lark_regex(r"a/b\/c"), "a/b/c", "a/b"),
        (lark_regex("a|b"), "b", "ab"),
        (lark_regex("a\nb"), "a\nb", "ab"),
        (lark_choices(["a", "ab", 'é"\n']), "ab", "abb"),
        (lark_choices(["a", 'é"\n']), 'é"\n', "é"),
        (lark_of(GBNF), "{abc}", "{}"),
        (lark_of('%llguidance {"no_forcing": false}\nstart: "x"'), "x", "y"),
    ],
)
def test_grammars_allow_what_their_field_says(takes, grammar, good, bad):
    assert takes(grammar, good)
    assert not takes(grammar, bad)


@pytest.mark.parametrize("text", ["\n" * 65_536, 'start: "x"' + "\n" * 65_000, "start" + " " * 65_000 + "x"])
@pytest.mark.timeout(10)
def test_empty_lines_of_a_grammar_take_no_time(text):
    with suppress(ValueError):
        lark_of(text)


def test_a_constraint_holds_beside_optional_calls(takes):
    chat_format = ChatFormat.of(ChatTraits("<tool_call>"))
    spec = chat_format.grammar(
        GrammarSpec("own", lark_of(GBNF), "grammar"),
        {"f": {"type": "object", "properties": {}}},
        Reasoning.AHEAD,
        must_call=False,
        has_one_call=True,
    )
    assert (spec.kind, spec.param) == ("own", "grammar")
    assert takes(spec.text, "{abc}")
    assert takes(spec.text, '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>')
    assert not takes(spec.text, "no")
