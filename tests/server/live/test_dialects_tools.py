"""Tools in responses and messages, with the unmodified packages: over a socket, with calls that the engine writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import anthropic
import openai
import pytest

from tests.byte_tokenizer import byte_codec
from tests.chat_formats import FAMILIES, SCHEMAS
from tests.server.engine.fakes import Rig
from tests.server.live.conftest import FakeServer, serving_rig

ASK = {"role": "user", "content": "Weather?"}
FUNCTIONS = [
    {"type": "function", "name": name, "parameters": schema, "strict": True} for name, schema in SCHEMAS.items()
]
TOOLS = [{"name": name, "input_schema": schema} for name, schema in SCHEMAS.items()]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServer]:
    """A model of bytes that writes calls in Hermes' format; forced calls follow the schemas."""
    folder = tmp_path_factory.mktemp("hermes")
    codec = byte_codec(folder, replace(FAMILIES["hermes"], thinking="").template)
    with serving_rig(Rig(num_blocks=2048, max_batched_tokens=256), codec) as running:
        yield running


@pytest.mark.slow
def test_a_response_calls_a_function_and_gets_its_output(openai_client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "fake", "tools": FUNCTIONS, "temperature": 0, "max_output_tokens": 300}
    choice = {"type": "function", "name": "set_light"}
    first = openai_client.responses.create(**asked, input=[ASK], tool_choice=choice)
    (call,) = first.output
    assert (first.status, call.type, call.name, call.status) == ("completed", "function_call", "set_light", "completed")
    assert set(json.loads(call.arguments)) == {"room", "on"}
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "done"}
    second = openai_client.responses.create(
        **asked | {"max_output_tokens": 8}, input=[ASK, *first.output, result], tool_choice="none"
    )
    assert len(second.output_text) == 8


def test_a_function_of_a_namespace_is_called_under_its_own_name(openai_client: openai.OpenAI) -> None:
    namespace = {"type": "namespace", "name": "home", "description": "The house.", "tools": FUNCTIONS}
    asked: dict[str, Any] = {"model": "fake", "tools": [namespace], "temperature": 0, "max_output_tokens": 300}
    first = openai_client.responses.create(**asked, input=[ASK], tool_choice={"type": "function", "name": "set_light"})
    (call,) = first.output
    assert (call.namespace, call.name, call.status) == ("home", "set_light", "completed")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "done"}
    second = openai_client.responses.create(
        **asked | {"max_output_tokens": 8}, input=[ASK, *first.output, result], tool_choice="none"
    )
    assert len(second.output_text) == 8


@pytest.mark.slow
def test_a_streamed_call_equals_the_complete_one(openai_client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "fake", "tools": FUNCTIONS, "temperature": 0, "max_output_tokens": 300}
    choice = {"type": "function", "name": "set_light"}
    (whole,) = openai_client.responses.create(**asked, input=[ASK], tool_choice=choice).output
    with openai_client.responses.stream(**asked, input=[ASK], tool_choice=choice) as stream:
        deltas = [event.delta for event in stream if event.type == "response.function_call_arguments.delta"]
        (call,) = stream.get_final_response().output
    assert "".join(deltas) == call.arguments == whole.arguments
    assert call.parsed_arguments == json.loads(whole.arguments)
    assert len(deltas) > 10


@pytest.mark.slow
def test_a_message_uses_a_tool_and_gets_its_result(anthropic_client: anthropic.Anthropic) -> None:
    asked: dict[str, Any] = {"model": "fake", "tools": TOOLS, "extra_body": {"temperature": 0}}
    choice = {"type": "tool", "name": "set_light"}
    first = anthropic_client.messages.create(**asked, messages=[ASK], tool_choice=choice, max_tokens=300)
    (use,) = first.content
    assert (first.stop_reason, use.type, use.name) == ("tool_use", "tool_use", "set_light")
    assert set(use.input) == {"room", "on"}
    result = {"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text", "text": "done"}]}
    messages = [ASK, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second = anthropic_client.messages.create(**asked, messages=messages, tool_choice={"type": "none"}, max_tokens=8)
    assert len(second.content[0].text) == 8
    counted = anthropic_client.messages.count_tokens(model="fake", messages=messages, tool_choice={"type": "none"})
    assert counted.input_tokens == second.usage.input_tokens + second.usage.cache_read_input_tokens


@pytest.mark.slow
def test_a_streamed_tool_use_equals_the_complete_one(anthropic_client: anthropic.Anthropic) -> None:
    asked: dict[str, Any] = {"model": "fake", "tools": TOOLS, "extra_body": {"temperature": 0}}
    asked |= {"messages": [ASK], "tool_choice": {"type": "tool", "name": "set_light"}, "max_tokens": 300}
    whole = anthropic_client.messages.create(**asked)
    with anthropic_client.messages.stream(**asked) as stream:
        snapshots = [event.snapshot for event in stream if event.type == "input_json"]
        message = stream.get_final_message()
    assert snapshots[-1] == message.content[0].input == whole.content[0].input
    assert message.stop_reason == "tool_use"


def test_tools_are_counted(anthropic_client: anthropic.Anthropic) -> None:
    bare = anthropic_client.messages.count_tokens(model="fake", messages=[ASK]).input_tokens
    assert anthropic_client.messages.count_tokens(model="fake", messages=[ASK], tools=TOOLS).input_tokens > bare + 100


@pytest.mark.slow
def test_any_tool_once(anthropic_client: anthropic.Anthropic) -> None:
    choice = {"type": "any", "disable_parallel_tool_use": True}
    asked: dict[str, Any] = {"model": "fake", "tools": TOOLS, "messages": [ASK], "max_tokens": 300}
    message = anthropic_client.messages.create(**asked, tool_choice=choice, extra_body={"temperature": 0})
    assert [block.type for block in message.content] == ["tool_use"]
    assert message.content[0].name in SCHEMAS


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("tools", [{"type": "function", "name": "two words", "parameters": {}}], "tools[0].name"),
        ("tools", [{"type": "function", "name": "f", "parameters": {"type": "string"}}], "tools[0].parameters"),
        ("tools", [FUNCTIONS[0], FUNCTIONS[0]], "tools"),
        ("tool_choice", {"type": "function", "name": "other"}, "tool_choice"),
        ("reasoning", {"effort": "extreme"}, "reasoning.effort"),
        (
            "input",
            [{"type": "function_call", "call_id": "a", "name": "f", "arguments": "[1"}],
            "input[0].arguments",
        ),
    ],
)
def test_unsupported_fields_of_a_response_are_named(
    openai_client: openai.OpenAI, field: str, value: object, param: str
) -> None:
    asked: dict[str, Any] = {"model": "fake", "tools": FUNCTIONS, "input": [ASK], field: value}
    with pytest.raises(openai.BadRequestError) as error:
        openai_client.responses.create(**asked)
    assert error.value.param == param


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("tools", [{"name": "two words", "input_schema": {}}], "'tools.0..name'"),
        ("tools", [{"name": "f", "input_schema": {"type": "string"}}], "'tools.0..input_schema' must be a JSON schema"),
        ("tools", [TOOLS[0], TOOLS[0]], "'tools' must have unique names"),
        ("tool_choice", {"type": "tool", "name": "other"}, "'tool_choice' names 'other'"),
        ("thinking", {"type": "sometimes"}, "'thinking.type'"),
        ("output_config", {"effort": "extreme"}, "'output_config.effort'"),
    ],
)
def test_unsupported_fields_of_a_message_are_named(
    anthropic_client: anthropic.Anthropic, field: str, value: object, message: str
) -> None:
    asked: dict[str, Any] = {"model": "fake", "max_tokens": 8, "tools": TOOLS, "messages": [ASK], field: value}
    with pytest.raises(anthropic.BadRequestError, match=message):
        anthropic_client.messages.create(**asked)
