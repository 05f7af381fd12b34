"""Tools of a chat: their validation, their form for templates, and tool calls in replies."""

import json

import pytest

from server.engine.interface import PromptTooLongError, RequestRefusedError
from tests.chat_formats import FAMILIES, TOOLS
from tests.server.api.turns import HERMES_CALL

WEATHER, LIGHT = TOOLS
CALLED = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
ASKED = {"role": "user", "content": "Rain?"}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALLED]}
ANSWERED = {"role": "tool", "tool_call_id": "call_1", "content": "no"}


def tool(**function):
    return {"type": "function", "function": {"name": "f", **function}}


def long_chat(chat, **fields):
    """Send a prompt that the fake model has no room for, and return the error's message."""
    response = chat(messages=[{"role": "user", "content": "a " * 1024}], **fields)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"
    return response.json()["error"]["message"]


# Clients such as Open WebUI send many tools, of which their users see nothing.
@pytest.mark.parametrize(
    ("tools", "sentence"), [(TOOLS, "includes 2 tool definitions."), ([WEATHER], "includes 1 tool definition.")]
)
def test_a_prompt_that_is_too_long_is_refused_with_the_number_of_its_tools(hermes, chat, tools, sentence):
    message = long_chat(chat, tools=tools)
    assert message.startswith("This model's maximum context length is 1024 tokens.")
    assert message.endswith(sentence)


def test_a_text_that_is_too_long_is_refused_with_the_number_of_its_tools(hermes, chat):
    hermes.codec.refusal = PromptTooLongError("the prompt has 9999 characters", "messages")
    assert long_chat(chat, tools=TOOLS) == "the prompt has 9999 characters. The prompt includes 2 tool definitions."


def test_tools_that_the_prompt_does_not_show_are_not_counted(hermes, chat):
    assert long_chat(chat, tools=TOOLS, tool_choice="none").endswith("of the completion.")


BAD_TOOLS = [
    ("tools", "hello", "tools"),
    ("tools", [{}], "tools[0].type"),
    ("tools", [{"type": "web_search"}], "tools[0].type"),
    ("tools", [{"type": "function"}], "tools[0].function"),
    ("tools", [tool(name="two words")], "tools[0].function.name"),
    ("tools", [tool(name="")], "tools[0].function.name"),
    ("tools", [tool(name="n" * 129)], "tools[0].function.name"),
    ("tools", [tool(parameters={"type": "string"})], "tools[0].function.parameters"),
    ("tools", [tool(parameters={"properties": []})], "tools[0].function.parameters"),
    ("tools", [tool(parameters=[])], "tools[0].function.parameters"),
    ("tools", [tool(description=3)], "tools[0].function.description"),
    ("tools", [tool(description="\ud800")], "tools[0].function.description"),
    ("tools", [tool(parameters={"description": "\ud800"})], "tools"),
    ("tools", [tool(description="x" * (1 << 18))], "tools"),
    ("tools", [tool(), tool()], "tools"),
    ("tools", [tool(name=f"f{number}") for number in range(129)], "tools"),
    ("tool_choice", "required", "tool_choice"),
    ("tool_choice", "any", "tool_choice"),
    ("tool_choice", {"type": "function"}, "tool_choice"),
    ("tool_choice", {"type": "function", "function": {"name": "f"}}, "tool_choice"),
    ("parallel_tool_calls", "no", "parallel_tool_calls"),
    ("functions", [{"name": "f"}], "functions"),
    ("function_call", {"name": "f"}, "function_call"),
    ("reasoning_effort", "extreme", "reasoning_effort"),
    ("chat_template_kwargs", {"x": "\ud800"}, "chat_template_kwargs"),
    ("chat_template_kwargs", [], "chat_template_kwargs"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("field", "value", "param"), BAD_TOOLS)
def test_bad_tools_and_choices_are_named(fake, chat, field, value, param):
    response = chat(**{field: value})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert not fake.engine.streams


def test_a_schema_nested_without_end_is_refused(chat):
    schema = {"type": "object"}
    for _ in range(40):
        schema = {"type": "object", "properties": {"a": schema}}
    assert chat(tools=[tool(parameters=schema)]).json()["error"]["param"] == "tools[0].function.parameters"


def test_a_tool_choice_of_an_unknown_tool_is_refused_by_name(chat):
    choice = {"type": "function", "function": {"name": "other"}}
    error = chat(tools=[WEATHER], tool_choice=choice).json()["error"]
    assert error["message"] == "'tool_choice' names 'other', which is not one of the tools."


def call(**function):
    return [ASKED, {**CALLS, "tool_calls": [{**CALLED, "function": {"name": "f", "arguments": "{}", **function}}]}]


BAD_MESSAGES = [
    ([ASKED, ANSWERED], "messages[1].tool_call_id"),
    ([ASKED, CALLS, {**ANSWERED, "tool_call_id": "call_2"}], "messages[2].tool_call_id"),
    ([ASKED, CALLS, {"role": "tool", "content": "no"}], "messages[2].tool_call_id"),
    ([ASKED, CALLS, {**ANSWERED, "content": None}], "messages[2].content"),
    ([ASKED, {"role": "assistant", "content": None}], "messages[1].content"),
    ([ASKED, {"role": "assistant", "content": None, "tool_calls": []}], "messages[1].content"),
    ([{**ASKED, "tool_calls": [CALLED]}], "messages[0].tool_calls"),
    (call(arguments="{city: 1"), "messages[1].tool_calls[0].function.arguments"),
    (call(arguments="[]"), "messages[1].tool_calls[0].function.arguments"),
    (call(arguments="[1"), "messages[1].tool_calls[0].function.arguments"),
    (call(arguments='{"a": 1} b'), "messages[1].tool_calls[0].function.arguments"),
    (call(arguments="[" * 100_000), "messages[1].tool_calls[0].function.arguments"),
    (call(arguments='{"a": ' + 5000 * "1" + "}"), "messages[1].tool_calls[0].function.arguments"),
    (call(arguments='{"a": "' + (1 << 18) * "a" + '"}'), "messages[1].tool_calls[0].function.arguments"),
    (call(arguments={}), "messages[1].tool_calls[0].function.arguments"),
    (call(name=""), "messages[1].tool_calls[0].function.name"),
    ([ASKED, {**CALLS, "tool_calls": [{**CALLED, "id": ""}]}], "messages[1].tool_calls[0].id"),
    ([ASKED, {**CALLS, "tool_calls": [{**CALLED, "type": "custom"}]}], "messages[1].tool_calls[0].type"),
    ([ASKED, {"role": "function", "name": "f", "content": "no"}], "messages[1].role"),
    ([ASKED, {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}], "messages[1].function_call"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("messages", "param"), BAD_MESSAGES)
def test_bad_calls_and_results_are_named(fake, chat, messages, param):
    response = chat(messages=messages, tools=TOOLS)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert not fake.engine.streams


def test_the_template_gets_tools_calls_results_and_reasoning(fake, chat):
    thinks = {**CALLS, "reasoning_content": "Hm."}
    parts = [{"type": "text", "text": "no"}, {"type": "text", "text": "rain"}]
    assert chat(messages=[ASKED, thinks, {**ANSWERED, "content": parts}], tools=[WEATHER, tool()]).status_code == 200
    reasoning = dict.fromkeys(("reasoning_content", "reasoning", "thinking"), "Hm.")
    assert fake.codec.conversations == [
        [
            ASKED,
            {"role": "assistant", "content": "", "tool_calls": [CALLED], **reasoning},
            {"role": "tool", "content": "no\nrain", "tool_call_id": "call_1", "name": "get_weather"},
        ]
    ]
    nothing = {"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}}
    assert fake.codec.tools == [[WEATHER, {"type": "function", "function": nothing}]]


def test_the_template_does_not_get_tools_that_may_not_be_called(fake, chat):
    assert chat(tools=TOOLS, tool_choice="none").status_code == 200
    assert fake.codec.tools == [[]]


def test_the_template_gets_its_own_options(fake, chat):
    chat(reasoning_effort="none", chat_template_kwargs={"thinking": True, "style": "dry"})
    chat(reasoning_effort="high")
    assert fake.codec.options == [
        {"reasoning_effort": "none", "enable_thinking": False, "thinking": True, "style": "dry"},
        {"reasoning_effort": "high", "enable_thinking": True, "thinking": True},
    ]


def test_a_model_that_takes_no_tools_says_so(fake, chat):
    fake.codec.refusal = RequestRefusedError("the model's chat template has no tools: leave out 'tools'", "tools")
    error = chat(tools=TOOLS).json()["error"]
    assert (error["param"], error["message"]) == ("tools", "the model's chat template has no tools: leave out 'tools'")


def test_a_complete_reply_has_reasoning_content_and_calls(hermes, chat):
    (choice,) = chat(tools=TOOLS).json()["choices"]
    call_id = choice["message"]["tool_calls"][0]["id"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": "I look.",
        "refusal": None,
        "reasoning_content": "Rain?",
        "tool_calls": [
            {
                "id": call_id,
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
            }
        ],
    }
    assert call_id.startswith("call_")


def test_a_reply_of_calls_only_has_no_content(hermes, chat):
    hermes.engine.texts = (HERMES_CALL,)
    assert chat(tools=TOOLS).json()["choices"][0]["message"]["content"] is None


def test_without_tools_a_call_is_text_and_reasoning_is_not(hermes, chat):
    (choice,) = chat().json()["choices"]
    assert choice["message"]["content"] == f"I look.\n{HERMES_CALL}"
    assert choice["message"]["reasoning_content"] == "Rain?"
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "stop"


def chunks(response):
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: {")]
    return [json.loads(event)["choices"][0] for event in events]


def test_a_stream_has_calls_in_deltas(hermes, chat):
    deltas = [choice["delta"] for choice in chunks(chat(tools=TOOLS, stream=True))]
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert calls[0] == {
        "index": 0,
        "id": calls[0]["id"],
        "type": "function",
        "function": {"name": "get_weather", "arguments": calls[0]["function"]["arguments"]},
    }
    assert all(set(call) == {"index", "function"} and set(call["function"]) == {"arguments"} for call in calls[1:])
    assert "".join(call["function"]["arguments"] for call in calls) == '{"city": "Paris"}'
    assert len(calls) > 10
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Rain?"
    assert "".join(delta.get("content", "") for delta in deltas) == "I look."
    assert deltas[-1] == {}


def test_logprobs_list_every_token(hermes, chat):
    hermes.engine.texts = ("<think>", "Rain?", "</think>", "Yes", ".")
    whole = chat(tools=TOOLS, logprobs=True).json()["choices"][0]["logprobs"]["content"]
    streamed = [
        each
        for choice in chunks(chat(tools=TOOLS, logprobs=True, stream=True))
        for each in (choice["logprobs"] or {"content": []})["content"]
    ]
    assert streamed == whole
    assert len(whole) == 5


def test_choices_are_parsed_independently(hermes, chat):
    choices = chat(tools=TOOLS, n=2).json()["choices"]
    ids = [choice["message"]["tool_calls"][0]["id"] for choice in choices]
    assert [choice["message"]["content"] for choice in choices] == ["I look."] * 2
    assert len(set(ids)) == 2


def test_only_the_first_call_is_returned_without_parallel_calls(hermes, chat):
    hermes.engine.texts = (HERMES_CALL, "\n", HERMES_CALL)
    assert len(chat(tools=TOOLS).json()["choices"][0]["message"]["tool_calls"]) == 2
    (choice,) = chat(tools=TOOLS, parallel_tool_calls=False).json()["choices"]
    assert len(choice["message"]["tool_calls"]) == 1


def test_the_markers_of_calls_are_written_where_they_are_special(fake, chat):
    fake.codec.chat_traits = FAMILIES["kimi"].traits
    chat(tools=TOOLS)
    chat()
    written = [request.sampling.written_tokens for request in fake.engine.requests]
    assert written == [frozenset(FAMILIES["kimi"].traits.special.values()), frozenset()]


UNIQUE = {"type": "object", "properties": {"tags": {"type": "array", "uniqueItems": True}}}


def test_what_no_grammar_enforces_is_logged_once_with_the_tool(hermes, chat, caplog):
    for _ in range(2):
        assert chat(tools=[WEATHER, tool(parameters=UNIQUE)], tool_choice="required").status_code == 200
    logged = [record.getMessage() for record in caplog.records if "enforcing" in record.getMessage()]
    assert logged == ["Not enforcing 'uniqueItems of the tool f': no grammar can."]


def test_a_strict_tool_that_no_grammar_enforces_is_refused_by_its_name(hermes, chat):
    error = chat(tools=[WEATHER, tool(parameters=UNIQUE, strict=True)]).json()["error"]
    assert error["param"] == "tools[1].function"
    assert "no grammar enforces 'uniqueItems' of 'properties.tags' in the schema of 'f'" in error["message"]


def allow(*names, mode="auto"):
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def test_the_prompt_shows_all_tools_whichever_are_allowed(hermes, chat):
    assert chat(tools=TOOLS, tool_choice=allow("set_light")).status_code == 200
    assert [each["function"]["name"] for each in hermes.codec.tools[-1]] == ["get_weather", "set_light"]
    assert "get_weather" not in hermes.codec.grammars[-1].text


def test_nothing_is_forced_if_all_tools_are_allowed(hermes, chat):
    assert chat(tools=TOOLS, tool_choice=allow("set_light", "get_weather")).status_code == 200
    assert hermes.codec.grammars == []


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (allow("fly"), "'tool_choice' allows 'fly', which is not one of the tools"),
        (allow(), "'tool_choice' must be \"auto\""),
        (allow("set_light", mode="none"), "'tool_choice' must be \"auto\""),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "mcp"}]}},
            "'tool_choice' must allow tools as",
        ),
    ],
)
def test_tools_that_can_not_be_allowed_are_refused(chat, choice, message):
    response = chat(tools=TOOLS, tool_choice=choice)
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(message)
