"""Forced calls of models with random weights, through the real command and the real `openai` package."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.byte_tokenizer import save_byte_tokenizer
from tests.chat_formats import FAMILIES, TOOLS
from tests.checkpoints import save_checkpoint
from tests.e2e.processes import serving
from tests.families import make_config

END = "<|end_of_text|>"
ASKED: Any = {"messages": [{"role": "user", "content": "Light!"}], "tools": TOOLS, "parallel_tool_calls": False}
NAMED: Any = {"type": "function", "function": {"name": "set_light"}}


@pytest.fixture(scope="module", params=[("qwen3_moe", "kimi"), ("gpt_oss", "mistral")], ids=lambda pair: pair[1])
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    model_type, name = request.param
    folder, family = tmp_path_factory.mktemp("checkpoints") / name, FAMILIES[name]
    config = make_config(model_type)
    config.vocab_size, config.max_position_embeddings = 320, 4096
    config.eos_token_id = 256 + len(family.special)
    save_checkpoint(config, folder)
    save_byte_tokenizer(folder, family.template.replace("[THINK]", ""), (*family.special, END))
    with serving(str(folder), "--dtype", "float32", "--served-model-name", "random") as server:
        yield server.client()


def test_random_weights_make_the_forced_call(client: openai.OpenAI) -> None:
    choices = client.chat.completions.create(model="random", **ASKED, tool_choice=NAMED, n=4, seed=1).choices
    for choice in choices:
        (call,) = choice.message.tool_calls or []
        values = json.loads(call.function.arguments)
        assert call.function.name == "set_light"
        assert values["room"] in ("hall", "attic")
        assert values["on"] in (True, False)
        assert choice.finish_reason == "stop"
        assert not choice.message.content


def test_a_forced_call_is_streamed(client: openai.OpenAI) -> None:
    strict: Any = [{**tool, "function": {**tool["function"], "strict": True}} for tool in TOOLS]
    with client.chat.completions.stream(
        model="random", **ASKED | {"tools": strict}, tool_choice=NAMED, seed=2
    ) as stream:
        arguments = [event for event in stream if event.type == "tool_calls.function.arguments.delta"]
        (choice,) = stream.get_final_completion().choices
    assert len(arguments) > 1
    assert json.loads(choice.message.tool_calls[0].function.arguments) == arguments[-1].parsed_arguments
