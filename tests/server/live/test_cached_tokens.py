"""Cached prompt tokens in the usage of each dialect: with the unmodified packages, over a socket."""

from __future__ import annotations

from collections.abc import Callable

import anthropic
import openai
import pytest

from tests.server.engine.fakes import BLOCK_SIZE
from tests.server.live.conftest import FakeServer

TEXT = "a question " * 8
MESSAGES = [{"role": "user", "content": TEXT}]
NUM_CHAT_TOKENS = len(f"user: {TEXT}\nassistant: ")


def client_of(live: FakeServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{live.port}/v1", api_key="none", max_retries=0)


def completion(live: FakeServer) -> tuple[int, int]:
    with client_of(live) as client:
        usage = client.completions.create(model="fake", prompt=TEXT, max_tokens=2).usage
    return usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens


def chat(live: FakeServer) -> tuple[int, int]:
    with client_of(live) as client:
        usage = client.chat.completions.create(model="fake", messages=MESSAGES, max_tokens=2).usage
    return usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens


def streamed_chat(live: FakeServer) -> tuple[int, int]:
    asked = {"model": "fake", "messages": MESSAGES, "max_tokens": 2, "stream_options": {"include_usage": True}}
    with client_of(live) as client:
        usage = list(client.chat.completions.create(**asked, stream=True))[-1].usage
    return usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens


def response(live: FakeServer) -> tuple[int, int]:
    with client_of(live) as client:
        usage = client.responses.create(model="fake", input=MESSAGES, max_output_tokens=16).usage
    return usage.input_tokens, usage.input_tokens_details.cached_tokens


def streamed_message(live: FakeServer) -> tuple[int, int]:
    """Anthropic does not count cached tokens as input tokens."""
    client = anthropic.Anthropic(base_url=f"http://127.0.0.1:{live.port}", api_key="none", max_retries=0)
    with client, client.messages.stream(model="fake", messages=MESSAGES, max_tokens=2) as stream:
        usage = stream.get_final_message().usage
    return usage.input_tokens + usage.cache_read_input_tokens, usage.cache_read_input_tokens


@pytest.mark.slow
@pytest.mark.parametrize("ask", [completion, chat, streamed_chat, response, streamed_message])
def test_a_repeated_prompt_is_cached_up_to_its_last_complete_block(
    live: FakeServer, ask: Callable[[FakeServer], tuple[int, int]]
) -> None:
    num_tokens = len(TEXT) if ask is completion else NUM_CHAT_TOKENS
    assert ask(live) == (num_tokens, 0)
    assert ask(live) == (num_tokens, (num_tokens - 1) // BLOCK_SIZE * BLOCK_SIZE)


def test_choices_that_share_a_prompt_count_it_once(live: FakeServer) -> None:
    prompts = [TEXT, f"Another {TEXT}"]
    for num_cached in (0, sum((len(prompt) - 1) // BLOCK_SIZE * BLOCK_SIZE for prompt in prompts)):
        with client_of(live) as client:
            usage = client.completions.create(model="fake", prompt=prompts, n=3, max_tokens=2).usage
        assert usage.prompt_tokens_details.cached_tokens == num_cached
