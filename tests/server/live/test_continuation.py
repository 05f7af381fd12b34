"""The last message is continued, with the openai and anthropic packages: over a socket, from the real engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from tests.chat_formats import FAMILIES
from tests.server.engine.fakes import continuation
from tests.server.live.scripted import serving_family

CONTINUED: Any = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Sure, "}]
TEXT = continuation(b"user: Hello\nassistant: Sure, ", 12)
CONTINUE = {"add_generation_prompt": False, "continue_final_message": True}
ASKED: Any = {"model": "fake", "messages": CONTINUED, "max_tokens": 12, "temperature": 0}


def test_a_chat_continues_its_last_message(openai_client: openai.OpenAI) -> None:
    reply = openai_client.chat.completions.create(**ASKED, extra_body=CONTINUE)
    assert reply.choices[0].message.content == TEXT
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == len("user: Hello\nassistant: Sure, ")


def test_a_chat_begins_a_new_turn_by_default(openai_client: openai.OpenAI) -> None:
    reply = openai_client.chat.completions.create(**ASKED)
    prompt = b"user: Hello\nassistant: Sure, \nassistant: "
    assert reply.choices[0].message.content == continuation(prompt, 12)


def test_a_chat_may_begin_no_turn(openai_client: openai.OpenAI) -> None:
    reply = openai_client.chat.completions.create(**ASKED, extra_body={"add_generation_prompt": False})
    assert reply.choices[0].message.content == continuation(b"user: Hello\nassistant: Sure, \n", 12)


CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"continue_final_message": True}, "is allowed only if 'add_generation_prompt' is false"),
        ({**CONTINUE, "messages": [{"role": "assistant", "content": "I", "tool_calls": [CALL]}]}, "has tool calls"),
    ],
)
def test_what_can_not_be_continued_is_refused(openai_client: openai.OpenAI, body: Any, message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as refused:
        openai_client.chat.completions.create(**ASKED, extra_body=body)
    assert refused.value.param == "continue_final_message"


def test_a_message_continues_the_assistants(anthropic_client: anthropic.Anthropic) -> None:
    asked: Any = {"model": "fake", "messages": CONTINUED}
    with anthropic_client.messages.stream(**asked, max_tokens=12, extra_body={"temperature": 0}) as stream:
        message = stream.get_final_message()
    assert message.content[0].text == TEXT
    assert anthropic_client.messages.count_tokens(**asked).input_tokens == message.usage.input_tokens


@pytest.mark.parametrize(
    ("status", "text"),
    [
        ({"status": "incomplete"}, TEXT),
        ({"status": "in_progress"}, TEXT),
        ({"status": "completed"}, continuation(b"user: Hello\nassistant: Sure, \nassistant: ", 12)),
        ({}, continuation(b"user: Hello\nassistant: Sure, \nassistant: ", 12)),
    ],
)
def test_a_response_continues_a_message_that_is_not_complete(
    openai_client: openai.OpenAI, status: Any, text: str
) -> None:
    messages: Any = [CONTINUED[0], {**CONTINUED[1], **status}]
    reply = openai_client.responses.create(model="fake", input=messages, max_output_tokens=12, temperature=0)
    assert reply.output_text == text


def test_a_response_that_was_cut_off_goes_on(openai_client: openai.OpenAI) -> None:
    asked: Any = {"model": "fake", "max_output_tokens": 12, "temperature": 0}
    first = openai_client.responses.create(**asked, input="Hello")
    messages: Any = [CONTINUED[0], *first.output]
    second = openai_client.responses.create(**asked, input=messages)
    assert first.output_text + second.output_text == continuation(b"user: Hello\nassistant: ", 24)


def test_a_response_continues_no_message_after_a_call(openai_client: openai.OpenAI) -> None:
    call = {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}
    messages: Any = [CONTINUED[0], call, {**CONTINUED[1], "status": "incomplete"}]
    with pytest.raises(openai.BadRequestError, match="must not end with a message to continue") as refused:
        openai_client.responses.create(model="fake", input=messages)
    assert refused.value.param == "input"


def test_json_of_a_schema_continues_no_message(anthropic_client: anthropic.Anthropic) -> None:
    config: Any = {"format": {"type": "json_schema", "schema": {"type": "object"}}}
    with pytest.raises(anthropic.BadRequestError, match=r"'output_config\.format' can't be used"):
        anthropic_client.messages.create(model="fake", messages=CONTINUED, max_tokens=12, output_config=config)


@pytest.mark.parametrize(
    ("begun", "reasoning", "content"),
    [("<think>I look", "Rain?", "No."), ("<think>I look.</think>So: ", None, "Rain?</think>No.")],
)
def test_reasoning_goes_on_only_if_it_is_open(begun: str, reasoning: str | None, content: str, tmp_path: Path) -> None:
    with serving_family(FAMILIES["hermes"], [f"{begun}Rain?</think>No."], tmp_path) as client:
        messages: Any = [CONTINUED[0], {"role": "assistant", "content": begun}]
        reply = client.chat.completions.create(model="fake", messages=messages, temperature=0, extra_body=CONTINUE)
    message = reply.choices[0].message
    assert (getattr(message, "reasoning_content", None), message.content) == (reasoning, content)
