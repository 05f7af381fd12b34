"""Tools with the openai package: over a socket, from the real engine, in the formats of all families."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import anthropic
import openai
import pytest
from pydantic import BaseModel, Field

from server.api.tool_parsers.chat_format import ChatFormat
from tests.chat_formats import FAMILIES, HALL, PARIS, TOOLS
from tests.server.live.scripted import END, serving_family

HELLO: Any = [{"role": "user", "content": "Rain? And light!"}]
ASKED: Any = {"model": "fake", "messages": HELLO, "tools": TOOLS, "temperature": 0}
STRICT: Any = [{**tool, "function": {**tool["function"], "strict": True}} for tool in TOOLS]
HERMES = FAMILIES["hermes"]


@pytest.fixture
def client(tmp_path: Path) -> Iterator[openai.OpenAI]:
    with serving_family(HERMES, [HERMES.text, "<think></think>No rain."], tmp_path) as client:
        yield client


def calls_of(message: Any) -> list[tuple[str, str]]:
    return [(call.function.name, call.function.arguments) for call in message.tool_calls or []]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_is_parsed_and_can_be_forced_to_call(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    named: Any = {"type": "function", "function": {"name": "set_light"}}
    with serving_family(family, [family.text], tmp_path) as client:
        (free,) = client.chat.completions.create(**ASKED).choices
        (forced,) = client.chat.completions.create(**ASKED, tool_choice=named).choices
    assert (free.finish_reason, forced.finish_reason) == ("tool_calls", "stop")
    assert calls_of(free.message) == list(family.calls)
    assert (free.message.content or "") == family.content
    assert getattr(free.message, "reasoning_content", "") == family.reasoning
    ((called, arguments),) = calls_of(forced.message)  # whatever else the model would write
    values = json.loads(arguments)
    assert (called, values["room"] in ("hall", "attic"), values["on"] in (True, False)) == ("set_light", True, True)
    assert not forced.message.content


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "lfm2"])  # which writes Python's literals
def test_strict_allows_what_a_family_writes(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    with serving_family(family, [family.text], tmp_path) as client:
        (free,) = client.chat.completions.create(**ASKED).choices
        (strict,) = client.chat.completions.create(**ASKED | {"tools": STRICT}).choices
    assert strict.message.content == free.message.content
    assert calls_of(strict.message) == calls_of(free.message)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAMILIES if ChatFormat.of(FAMILIES[name].traits).openers])
def test_no_family_begins_a_call_without_tools(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    openers = ChatFormat.of(family.traits).openers
    with serving_family(family, [family.text], tmp_path) as client:
        (choice,) = client.chat.completions.create(model="fake", messages=HELLO, temperature=0).choices
    assert not any(opener in (choice.message.content or "") for opener in openers)


def test_a_conversation_goes_on_with_the_results(client: openai.OpenAI) -> None:
    (first,) = client.chat.completions.create(**ASKED).choices
    results: Any = [
        {"role": "tool", "tool_call_id": call.id, "content": "done"} for call in first.message.tool_calls or []
    ]
    (second,) = client.chat.completions.create(**ASKED | {"messages": [*HELLO, first.message, *results]}).choices
    assert second.message.content == "No rain."
    assert second.finish_reason == "stop"


CUT = len(HERMES.text.partition('"Par')[0]) + len('"Par')  # bytes up to the middle of an argument


def test_a_call_that_max_tokens_cuts_comes_as_far_as_it_came_and_may_be_sent_back(client: openai.OpenAI) -> None:
    (first,) = client.chat.completions.create(**ASKED, max_tokens=CUT).choices
    assert first.finish_reason == "length"
    assert calls_of(first.message) == [(PARIS[0], '{"city": "Par')]
    (second,) = client.chat.completions.create(**ASKED | {"messages": [*HELLO, first.message, *HELLO]}).choices
    assert second.message.content == "No rain."


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma", "lfm2", "pythonic", "qwen-coder"])
def test_a_cut_call_in_other_forms_than_json_comes_as_far_as_it_came(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    written = family.text.partition("Par")[0] + "Par"
    for token in family.special:
        written = written.replace(token, "\0")  # one token
    with serving_family(family, [family.text, "No rain."], tmp_path) as client:
        (whole,) = client.chat.completions.create(**ASKED, max_tokens=len(written)).choices
        chunks = [*client.chat.completions.create(**ASKED, max_tokens=len(written), stream=True)]
        again = {"messages": [*HELLO, whole.message, *HELLO]}
        (after,) = client.chat.completions.create(**ASKED | again).choices
    streamed = [call.function for chunk in chunks for call in chunk.choices[0].delta.tool_calls or [] if call.function]
    arguments = "".join(each.arguments or "" for each in streamed)
    assert (streamed[0].name, arguments, chunks[-1].choices[0].finish_reason) == (PARIS[0], '{"city": "Par"', "length")
    assert (calls_of(whole.message), whole.finish_reason) == ([(PARIS[0], '{"city": "Par"')], "length")
    assert after.finish_reason == "stop"


def test_a_response_with_a_cut_call_may_be_sent_back(client: openai.OpenAI) -> None:
    tools: Any = [{"type": "function", **tool["function"], "strict": None} for tool in TOOLS]
    asked: Any = {"model": "fake", "tools": tools, "temperature": 0}
    first = client.responses.create(**asked, input=HELLO, max_output_tokens=CUT)
    assert (first.status, first.output[-1].arguments) == ("incomplete", '{"city": "Par')
    assert client.responses.create(**asked, input=[*HELLO, *first.output, *HELLO]).output_text == "No rain."


def test_a_tool_use_that_max_tokens_cuts_may_be_sent_back(client: openai.OpenAI) -> None:
    tools: Any = [{"name": tool["function"]["name"], "input_schema": tool["function"]["parameters"]} for tool in TOOLS]
    asked: Any = {"model": "fake", "tools": tools, "extra_body": {"temperature": 0}}
    url = str(client.base_url).removesuffix("/v1/")
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as other:
        first = other.messages.create(**asked, messages=HELLO, max_tokens=CUT)
        messages: Any = [*HELLO, {"role": "assistant", "content": first.content}, *HELLO]
        second = other.messages.create(**asked, messages=messages, max_tokens=500)
    assert (first.stop_reason, first.content[-1].input) == ("max_tokens", {"city": "Par"})
    assert second.content[-1].text == "No rain."


@pytest.mark.slow
def test_stream(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(**ASKED, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    calls = [call for delta in deltas for call in delta.tool_calls or []]
    assert [(call.index, call.function.name) for call in calls if call.id] == [(0, PARIS[0]), (1, HALL[0])]
    arguments = ["".join(call.function.arguments for call in calls if call.index == index) for index in (0, 1)]
    assert arguments == [PARIS[1], HALL[1]]
    assert "".join(getattr(delta, "reasoning_content", "") for delta in deltas) == "Two calls."
    assert "".join(delta.content or "" for delta in deltas) == "I look."
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


@pytest.mark.slow
def test_the_packages_own_stream(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(**ASKED | {"tools": STRICT}) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        completion = stream.get_final_completion()
    assert [(event.name, event.arguments) for event in done] == [PARIS, HALL]
    assert calls_of(completion.choices[0].message) == [PARIS, HALL]


class SetLight(BaseModel):
    """Turn a light on or off."""

    room: Literal["hall", "attic"]
    on: bool


@pytest.mark.slow
def test_arguments_are_parsed_into_models(client: openai.OpenAI) -> None:
    tool = openai.pydantic_function_tool(SetLight, name="set_light")
    completion = client.chat.completions.parse(
        **ASKED | {"tools": [tool]}, tool_choice="required", parallel_tool_calls=False
    )
    (call,) = completion.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, SetLight)


class Lamp(BaseModel):
    kind: Literal["lamp"] = "lamp"
    room: Literal["hall", "attic"]


class Fan(BaseModel):
    kind: Literal["fan"] = "fan"
    speed: Literal[1, 2]


class Switch(BaseModel):
    """Switch a device on."""

    device: Lamp | Fan = Field(discriminator="kind")


@pytest.mark.slow
def test_arguments_are_parsed_into_models_of_a_union(client: openai.OpenAI) -> None:
    completion = client.chat.completions.parse(
        **ASKED | {"tools": [openai.pydantic_function_tool(Switch)]}, tool_choice="required", parallel_tool_calls=False
    )
    (call,) = completion.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Switch)


def test_a_reply_is_parsed_into_a_model_of_a_union(client: openai.OpenAI) -> None:
    completion = client.chat.completions.parse(**ASKED | {"tools": openai.omit}, response_format=Switch)
    assert isinstance(completion.choices[0].message.parsed, Switch)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("mode", ["auto", "required"])
def test_only_allowed_tools_are_called(name: str, mode: str, tmp_path: Path) -> None:
    family, light = FAMILIES[name], {"type": "function", "function": {"name": "set_light"}}
    allowed: Any = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [light]}}
    with serving_family(family, [family.text], tmp_path) as client:
        (choice,) = client.chat.completions.create(**ASKED, tool_choice=allowed, max_tokens=400).choices
    names = {name for name, _ in calls_of(choice.message)}
    assert names <= {"set_light"}
    assert names or mode == "auto"


@pytest.mark.slow
def test_a_response_calls_only_allowed_tools(client: openai.OpenAI) -> None:
    tools: Any = [{"type": "function", **tool["function"], "strict": None} for tool in TOOLS]
    light: Any = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "set_light"}]}
    response = client.responses.create(model="fake", input=HELLO, tools=tools, tool_choice=light, temperature=0)
    assert {item.name for item in response.output if item.type == "function_call"} == {"set_light"}


def test_no_calls_with_tool_choice_none(client: openai.OpenAI) -> None:
    (choice,) = client.chat.completions.create(**ASKED, tool_choice="none").choices
    assert choice.message.tool_calls is None
    assert '"get_weather"' in (choice.message.content or "")  # as text, which begins no call
    assert "<tool_call>" not in (choice.message.content or "")


def test_one_call_without_parallel_calls(client: openai.OpenAI) -> None:
    (choice,) = client.chat.completions.create(**ASKED, parallel_tool_calls=False).choices
    assert calls_of(choice.message) == [PARIS]


@pytest.mark.slow
def test_choices_of_one_request_are_parsed_independently(client: openai.OpenAI) -> None:
    choices = client.chat.completions.create(**ASKED, n=3).choices
    assert [calls_of(choice.message) for choice in choices] == [[PARIS, HALL]] * 3
    assert len({call.id for choice in choices for call in choice.message.tool_calls or []}) == 6


@pytest.mark.slow
def test_logprobs_list_every_token(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(**ASKED, logprobs=True)
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None
    assert "".join(token.token for token in logprobs.content or []) == HERMES.text + END


def test_a_model_whose_template_has_no_tools_says_so(live: Any) -> None:
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{live.port}/v1", api_key="none", max_retries=0)
    message = "the model's chat template does not support tools"
    with client, pytest.raises(openai.BadRequestError, match=message) as raised:
        client.chat.completions.create(**ASKED)
    assert raised.value.param == "tools"


def test_a_schema_that_can_not_be_followed_is_named(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "odd"}}}}}
    with pytest.raises(openai.BadRequestError, match=r"'tools' can't be followed: .* schema of the tool 'f'") as raised:
        client.chat.completions.create(**ASKED | {"tools": [*TOOLS, tool]}, tool_choice="required")
    assert raised.value.param == "tools"


@pytest.mark.slow
def test_anthropics_dialect_has_the_same_calls_and_reasoning(client: openai.OpenAI) -> None:
    tools: Any = [{"name": tool["function"]["name"], "input_schema": tool["function"]["parameters"]} for tool in TOOLS]
    greedy, url = {"temperature": 0}, str(client.base_url).removesuffix("/v1/")
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as other:
        message = other.messages.create(model="fake", messages=HELLO, tools=tools, max_tokens=500, extra_body=greedy)
    used = [(block.name, block.input) for block in message.content if block.type == "tool_use"]
    assert used == [(name, json.loads(arguments)) for name, arguments in (PARIS, HALL)]
    assert [block.thinking for block in message.content if block.type == "thinking"] == ["Two calls."]
    assert message.stop_reason == "tool_use"


@pytest.mark.slow
def test_responses_have_the_same_calls_and_reasoning(client: openai.OpenAI) -> None:
    tools: Any = [{"type": "function", **tool["function"], "strict": None} for tool in TOOLS]
    response = client.responses.create(model="fake", input="Rain? And light!", tools=tools, temperature=0)
    called = [(item.name, item.arguments) for item in response.output if item.type == "function_call"]
    assert called == [PARIS, HALL]
    assert response.output_text == "I look."
