"""Text that only looks like a call stays text; calls are never lost."""

from __future__ import annotations

import json

import pytest

from tests.chat_formats import BAR, FAMILIES, PARIS
from tests.server.api.tool_parsers.turns import parser_of, read

SAID = [
    ("hermes", "<tool_call>not JSON</tool_call>"),
    ("hermes", 'Write <tool_call> and </tool_call>, or <tool_call>{"name": 3, "arguments": {}}</tool_call>.'),
    ("hermes", '<tool_call>{"arguments": {"city": "Paris"}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "get_weather", "arguments": [1]}</tool_call>'),
    ("hermes", '<tool_call>\n{"name": "get_we'),
    ("hermes", "<tool_"),
    ("qwen-coder", "</think><tool_call>\n<function=get weather>\n</function>\n</tool_call>"),
    ("glm", "<tool_call>two words\n</tool_call>"),
    ("minimax", "<minimax:tool_call>\nnothing\n</minimax:tool_call>"),
    ("lfm2", "<|tool_call_start|>[get_weather('Paris')]<|tool_call_end|>"),
    ("lfm2", "<|tool_call_start|>[get_weather(city=Paris)]<|tool_call_end|>"),
    ("pythonic", "[other(a=1)]"),
    ("pythonic", "[1, 2, 3] are numbers"),
    ("llama", '{"name": "other", "parameters": {}}'),
    ("llama", '{"city": "Paris"}'),
    ("unknown", '{"answer": {"name": "get_weather"}}'),
    ("kimi", "<|tool_call_begin|>functions.get_weather:0<|tool_call_end|>"),
    ("mistral", "[TOOL_CALLS]"),
    ("gemma", '<|tool_call>call:get_weather{city:<|"|>Paris<|"|><tool_call|>'),
    ("deepseek-v3", f"<{BAR}tool▁calls▁begin{BAR}>function get_weather"),
]


@pytest.mark.parametrize(("name", "text"), SAID)
def test_text_that_is_not_a_call_has_no_special_tokens(name: str, text: str) -> None:
    family = FAMILIES[name]
    said = text.removeprefix("</think>")
    for token in family.special:
        said = said.replace(token, "")
    turn = read(parser_of(family), text)
    assert turn.content == said
    assert (turn.calls, turn.finish_reason) == ([], "stop")


CALLED = [
    ("hermes", '<tool_call>{"arguments": {"city": "Paris", "days": 3}, "name": "get_weather"}</tool_call>'),
    ("hermes", '<tool_call>{"id": 1, "name": "get_weather", "arguments": {"city": "Paris", "days": 3}}}</tool_call>'),
    ("hermes", '<tool_call>[{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}]</tool_call>'),
    ("hermes", '<tool_call>{"name":"get_weather","arguments":"{\\"city\\": \\"Paris\\", \\"days\\": 3}"}</tool_call>'),
    ("hermes", '<tool_call>{"name":"get_weather", "arguments": {"city": "Paris", "days": 3}}'),
    ("qwen-coder", '</think><tool_call>{"name":"get_weather", "arguments": {"city": "Paris", "days": 3}}</tool_call>'),
    (
        "qwen-coder",
        "</think><function=get_weather><parameter=city>Paris</parameter><parameter=days>3</parameter></function>",
    ),
    ("lfm2", '<|tool_call_start|>[{"name":"get_weather","arguments":{"city": "Paris", "days": 3}}]<|tool_call_end|>'),
    ("mistral", '[TOOL_CALLS]get_weather{"city": "Paris", "days": 3}'),
    ("mistral", '[TOOL_CALLS]get_weather[CALL_ID]123456789[ARGS]{"city": "Paris", "days": 3}'),
    ("granite", '<|tool_call|>{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}'),
    ("llama", '{"name": "get_weather", "parameters": {"city": "Paris", "days": 3}}'),
    ("unknown", '{"name": "get_weather", "parameters": {"city": "Paris", "days": 3}}'),
    ("harmony", '<|channel|>commentary to=functions.get_weather<|message|>{"city": "Paris", "days": 3}'),
    ("harmony", ' to=functions.get_weather<|channel|>commentary json<|message|>{"city": "Paris", "days": 3}<|call|>'),
]


@pytest.mark.parametrize(("name", "text"), CALLED)
def test_deviations_of_models_are_parsed(name: str, text: str) -> None:
    turn = read(parser_of(FAMILIES[name]), text)
    assert turn.calls == [PARIS]
    assert (turn.content, turn.finish_reason) == ("", "tool_calls")


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("Hi<|channel|> you<|message|>!", "Hi you!"),
        ("<|channel|>final<|message|>Hi<|constrain|> you<|end|>", "Hi you"),
        ("<|channel|>final, without an end", "final, without an end"),
    ],
)
def test_stray_markers_of_messages_are_dropped(text: str, content: str) -> None:
    turn = read(parser_of(FAMILIES["harmony"]), text)
    assert (turn.content, turn.calls) == (content, [])


def test_a_call_without_arguments_has_none() -> None:
    texts = ['<tool_call>{"name": "now"}</tool_call>', '<tool_call>{"name": "now", "arguments": null}</tool_call>']
    assert [read(parser_of(FAMILIES["hermes"]), text).calls for text in texts] == [[("now", "{}")]] * 2


def test_a_valid_call_before_an_invalid_one_is_kept() -> None:
    text = '<tool_call>{"name": "a", "arguments": {}}</tool_call>\n<tool_call>oh</tool_call>'
    turn = read(parser_of(FAMILIES["hermes"]), text)
    assert turn.calls == [("a", "{}")]
    assert turn.content.strip() == "<tool_call>oh</tool_call>"


def test_a_call_that_the_token_limit_cuts_is_returned_as_far_as_it_came() -> None:
    turn = read(parser_of(FAMILIES["hermes"]), '<tool_call>{"name": "a", "arguments": {"city": "Par', reason="length")
    assert (turn.calls, turn.finish_reason) == ([("a", '{"city": "Par')], "length")


def test_reasoning_that_only_mentions_the_tag_goes_on() -> None:
    turn = read(parser_of(FAMILIES["hermes"]), "<think>Maybe <tool_call> helps? No.</think>Hello")
    assert (turn.reasoning, turn.content, turn.calls) == ("Maybe <tool_call> helps? No.", "Hello", [])


def test_a_call_drafted_within_reasoning_is_not_a_call() -> None:
    call = '<tool_call>{"name": "a", "arguments": {}}</tool_call>'
    turn = read(parser_of(FAMILIES["hermes"]), f"<think>Then {call} it is.</think>\n{call}")
    assert (turn.reasoning, turn.calls) == (f"Then {call} it is.", [("a", "{}")])


def test_a_call_ends_reasoning_that_was_not_closed() -> None:
    text = "<think>I call.\n<tool_call>\n" + json.dumps({"name": "a", "arguments": {}}) + "\n</tool_call>"
    turn = read(parser_of(FAMILIES["hermes"]), text)
    assert (turn.reasoning, turn.content, turn.calls) == ("I call.", "", [("a", "{}")])


def test_reasoning_cut_off_by_the_limit_is_reasoning() -> None:
    turn = read(parser_of(FAMILIES["qwen-coder"]), "Let me see", reason="length")
    assert (turn.reasoning, turn.content, turn.finish_reason) == ("Let me see", "", "length")


def test_tags_within_text_are_text() -> None:
    text = "The tags are <think> and </think>."
    assert read(parser_of(FAMILIES["hermes"]), text).content == text


def test_special_tokens_that_stray_are_dropped() -> None:
    turn = read(parser_of(FAMILIES["kimi"]), "Hello <|tool_calls_section_end|>there")
    assert turn.content == "Hello there"


@pytest.mark.slow
@pytest.mark.parametrize("depth", [*range(900, 1000, 3), 100_000])
def test_no_depth_is_too_deep(depth: int) -> None:
    nested = '{"a": ' * depth + "1" + "}" * depth
    texts = {
        "hermes": f'<tool_call>{{"arguments": {nested}, "name": "x"}}</tool_call>',
        "glm": f"<tool_call>x<arg_key>days</arg_key><arg_value>{nested}</arg_value></tool_call>",
        "lfm2": f"<|tool_call_start|>[x(a={nested})]<|tool_call_end|>",
        "gemma": f"<|tool_call>call:x{nested}<tool_call|>",
    }
    for name, text in texts.items():
        turn = read(parser_of(FAMILIES[name]), [text])
        assert turn.content or turn.calls
