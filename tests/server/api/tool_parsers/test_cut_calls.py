"""Calls that the token limit cuts off come back as far as they came."""

from __future__ import annotations

import json

import pytest

from server.api.core.json_text.cut_json import parse_cut
from server.api.tool_parsers.argument_values import cut_json
from tests.chat_formats import FAMILIES
from tests.server.api.tool_parsers.turns import parser_of, read

BEGINNINGS = [{}, *({"city": "Paris"[:length]} for length in range(6))]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_call_of_each_family_is_a_call_wherever_its_arguments_are_cut(name: str) -> None:
    family = FAMILIES[name]
    first, last = family.text.index("Paris"), family.text.index("3", family.text.index("Paris"))
    content = family.content if family.content in family.text[:first] else ""
    for end in range(first, last + 1):
        turn = read(parser_of(family), [family.text[:end]], reason="length")
        ((called, arguments),) = turn.calls
        value, is_cut = parse_cut(arguments)
        assert (called, turn.content, turn.finish_reason, is_cut) == ("get_weather", content, "length", True)
        assert value in BEGINNINGS


@pytest.mark.parametrize("name", ["gemma", "lfm2", "qwen-coder"])
def test_the_split_of_a_call_that_is_cut_off_does_not_matter(name: str) -> None:
    family = FAMILIES[name]
    text = family.text[: family.text.index("ris")]
    assert read(parser_of(family), text, "length").calls == read(parser_of(family), [text], "length").calls


LFM2, GEMMA = "<|tool_call_start|>[", "<|tool_call>call:"
CODER = "</think><tool_call>\n<function=f>\n"


@pytest.mark.parametrize(
    ("name", "text", "arguments"),
    [
        ("lfm2", LFM2 + "f(", "{"),
        ("lfm2", LFM2 + "f(a=1, b", '{"a": 1'),
        ("lfm2", LFM2 + "f(a=1, b=Tr", '{"a": 1'),
        ("lfm2", LFM2 + "f(a='x, y(z", '{"a": "x, y(z"'),
        ("lfm2", LFM2 + "f(a='it\\'s \\", '{"a": "it\'s "'),
        ("lfm2", LFM2 + "f(a='\\u00e", '{"a": ""'),
        ("lfm2", LFM2 + "f(a=[1, {'b': 2, 'c", '{"a": [1, {"b": 2}]'),
        ("lfm2", LFM2 + "f(a=[1, {'b': (2, 3", '{"a": [1, {"b": [2, 3]}]'),
        ("lfm2", LFM2 + "f(a=1)", '{"a": 1}'),
        ("lfm2", LFM2 + "f(a=1)]<|tool_c", '{"a": 1}'),
        ("gemma", GEMMA + "f{", "{"),
        ("gemma", GEMMA + "f{a", "{"),
        ("gemma", GEMMA + "f{a:1,b:tr", '{"a": 1'),
        ("gemma", GEMMA + 'f{a:<|"|>', '{"a": ""'),
        ("gemma", GEMMA + 'f{a:<|"|>x, {y:', '{"a": "x, {y:"'),
        ("gemma", GEMMA + 'f{a:[1,{b:2,<|"|>c', '{"a": [1, {"b": 2}]'),
        ("gemma", GEMMA + "f{a:1}<tool_", '{"a": 1}'),
        ("qwen-coder", CODER, ""),
        ("qwen-coder", CODER + "<parameter=a>\nx y", '{"a": "x y"'),
        ("qwen-coder", CODER + "<parameter=a>\nx\n</para", '{"a": "x"'),
        ("qwen-coder", CODER + "<parameter=a>\nx\n</parameter>\n<par", '{"a": "x"'),
        ("qwen-coder", CODER + "<parameter=a>\nx\n</parameter>\n</fun", '{"a": "x"}'),
        ("qwen-coder", CODER + "<parameter=a>\nx\n</parameter>\n</function>\n</tool_", '{"a": "x"}'),
        ("glm", "<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>x</arg", '{"a": "x"'),
        ("glm", "<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>x</arg_value>\n<arg", '{"a": "x"'),
        ("glm", "<tool_call>f\n</tool_call>", "{}"),
        ("hermes", '<tool_call>{"name": "f"', ""),
        ("hermes", '<tool_call>{"name": "f", "argum', ""),
        ("hermes", '<tool_call>{"name": "f", "arguments": ', ""),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1}}\n</tool_', '{"a": 1}'),
    ],
)
def test_what_can_be_told_is_kept(name: str, text: str, arguments: str) -> None:
    turn = read(parser_of(FAMILIES[name]), [text], reason="length")
    assert turn.calls == [("f", arguments)]
    assert turn.content.removeprefix("</think>") == ""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("lfm2", LFM2 + "get_we"),
        ("pythonic", "[other(a="),
        ("gemma", GEMMA + "get_we"),
        ("gemma", GEMMA + "f{a{"),
        ("glm", "<tool_call>get_we"),
        ("hermes", '<tool_call>{"name": "get_we'),
        ("hermes", '<tool_call>{"arguments": {"a": 1'),
        ("llama", '{"name": "Paris", "pop'),
    ],
)
def test_a_beginning_that_is_no_call_is_text(name: str, text: str) -> None:
    turn = read(parser_of(FAMILIES[name]), [text], reason="length")
    assert (turn.calls, turn.finish_reason) == ([], "length")
    assert turn.content != ""


def test_a_call_that_the_model_itself_did_not_end_is_text() -> None:
    turn = read(parser_of(FAMILIES["gemma"]), [GEMMA + "f{a:1"])
    assert (turn.calls, turn.content) == ([], "call:f{a:1")


@pytest.mark.parametrize(
    ("raw", "types", "value"),
    [
        ('[1, {"a": "x', "array", '[1, {"a": "x"}]'),
        ('{"a": 1, "b', "object", '{"a": 1}'),
        ("12", "integer", "12"),
        ("tr", "boolean", None),
        ("", "object", None),
        ("3 app", "integer", None),
        ("{'a': 1", "object", None),
        ('{"a": 1', ["object", "string"], '"{\\"a\\": 1"'),
        ("a b", None, '"a b"'),
        ('{"a": 1', None, '{"a": 1}'),
    ],
)
def test_a_value_that_is_cut_off_keeps_its_type(raw: str, types: object, value: str | None) -> None:
    assert cut_json(raw, {} if types is None else {"type": types}) == value
    assert value is None or json.loads(value) is not None
