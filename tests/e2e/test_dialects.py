"""The same conversation in each dialect, through its official client package, with the bundled model."""

from __future__ import annotations

import anthropic
import ollama
import openai
import pytest

from tests.e2e.processes import Server

MODEL = "greenroom-demo"
SYSTEM, QUESTION = "Answer briefly.", "Write a recipe for apple pie."
NUM_TOKENS = 24


@pytest.fixture(scope="module")
def chat(client: openai.OpenAI) -> openai.types.chat.ChatCompletion:
    """The reply of the chat API, which the other dialects must equal."""
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
    return client.chat.completions.create(model=MODEL, messages=messages, temperature=0, max_tokens=NUM_TOKENS)


def test_responses(client: openai.OpenAI, chat: openai.types.chat.ChatCompletion) -> None:
    asked = {
        "model": MODEL,
        "instructions": SYSTEM,
        "input": QUESTION,
        "temperature": 0,
        "max_output_tokens": NUM_TOKENS,
    }
    whole = client.responses.create(**asked)
    assert whole.output_text == chat.choices[0].message.content
    assert whole.usage.input_tokens == chat.usage.prompt_tokens
    with client.responses.stream(**asked) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text
    assert len(deltas) > NUM_TOKENS // 2


def test_messages(server: Server, chat: openai.types.chat.ChatCompletion) -> None:
    prompt = {"model": MODEL, "system": SYSTEM, "messages": [{"role": "user", "content": QUESTION}]}
    asked = {**prompt, "max_tokens": NUM_TOKENS, "extra_body": {"temperature": 0}}
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        whole = client.messages.create(**asked)
        with client.messages.stream(**asked) as stream:
            deltas = list(stream.text_stream)
        num_prompt_tokens = client.messages.count_tokens(**prompt).input_tokens
    assert whole.content[0].text == chat.choices[0].message.content
    usage = whole.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == chat.usage.prompt_tokens == num_prompt_tokens
    assert "".join(deltas) == whole.content[0].text
    assert len(deltas) > NUM_TOKENS // 2


def test_ollamas_chats(server: Server, chat: openai.types.chat.ChatCompletion) -> None:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
    asked = {"messages": messages, "options": {"temperature": 0, "num_predict": NUM_TOKENS}}
    with ollama.Client(server.url) as client:
        listed = client.list().models[0]
        (running,) = client.ps().models
        whole = client.chat(listed.model, **asked)
        deltas = [part.message.content for part in client.chat(MODEL, **asked, stream=True)]
    assert whole.message.content == chat.choices[0].message.content
    assert whole.prompt_eval_count == chat.usage.prompt_tokens
    assert "".join(deltas) == whole.message.content
    assert len(deltas) > NUM_TOKENS // 2
    details = listed.details
    assert (details.format, details.family, details.quantization_level) == ("safetensors", "qwen3_moe", "BF16")
    assert details.parameter_size.endswith("M")
    assert 0 < running.size < listed.size * 2


def test_a_model_answers_under_an_alias(server: Server) -> None:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        hello = [{"role": "user", "content": "Hello"}]
        message = client.messages.create(model="claude-opus-4-8", messages=hello, max_tokens=2)
    assert message.model == MODEL
