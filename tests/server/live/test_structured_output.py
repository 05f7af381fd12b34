"""Structured output of real architectures with several types of tokenizers, over a socket, with the openai package."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from transformers import PreTrainedTokenizerFast

from server.api.core.requests.loaded_model import LoadedModel
from server.loading.load import load_server
from server.settings import ServeSettings
from tests.byte_tokenizer import CHAT_TEMPLATE
from tests.checkpoints import CONFIGS, save_checkpoint
from tests.families import make_config
from tests.server.engine.text.tokenizers_of_kinds import KNOWN, OTHERS, with_added_tokens
from tests.server.live.conftest import serving_model

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "kind": {"enum": ["green", "red"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
    },
    "required": ["name", "kind", "age"],
    "additionalProperties": False,
}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
QUESTION: Any = [{"role": "user", "content": "who"}]
MODELS = [
    ("qwen3_moe", "byte_level"),
    ("mixtral", "llama"),
    ("deepseek_v3", "gemma"),
    ("gpt_oss", "unigram"),
    ("qwen3_next", "byte_level"),
    ("deepseek_v4", "llama"),  # attention sequence by sequence
]


def save_model(architecture: str, kind: str, folder: Path) -> None:
    """A random checkpoint whose embedding has more rows than its tokenizer has tokens."""
    tokenizer = with_added_tokens((KNOWN | OTHERS)[kind])
    tokenizer.add_tokens([chr(code) for code in range(33, 127)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=None, eos_token="<|end|>")
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    config = CONFIGS[architecture]() if architecture in CONFIGS else make_config(architecture)
    config.vocab_size = 512
    config.eos_token_id = tokenizer.token_to_id("<|end|>")
    save_checkpoint(config, folder)


@contextmanager
def serving_random(architecture: str, kind: str, folder: Path) -> Iterator[openai.OpenAI]:
    save_model(architecture, kind, folder)
    settings = ServeSettings(dtype="float32", threads=1, kv_cache_memory="8MiB")
    loaded = load_server(str(folder), settings)
    try:
        model = LoadedModel(loaded.name, loaded.engine, loaded.codec, loaded.defaults)
        with serving_model(model, loaded.engine) as server:
            url = f"http://127.0.0.1:{server.port}/v1"
            with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
                yield client
    finally:
        loaded.close()


@pytest.fixture(scope="module", params=MODELS, ids="-".join)
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    with serving_random(*request.param, tmp_path_factory.mktemp("model")) as client:
        yield client


def ask(client: openai.OpenAI, **body: Any) -> Any:
    model = client.models.list().data[0].id
    options = {"model": model, "messages": QUESTION, "max_tokens": 120, "response_format": FORMAT} | body
    return client.chat.completions.create(**options)


@pytest.mark.slow
def test_random_models_write_json_of_the_schema(client: openai.OpenAI) -> None:
    answer = ask(client, n=4, seed=1)
    for choice in answer.choices:
        person = json.loads(choice.message.content)
        assert list(person) == PERSON["required"]
        assert person["kind"] in ("green", "red")
        assert 0 <= person["age"] <= 130
        assert choice.finish_reason == "stop"


@pytest.mark.slow
def test_random_models_write_it_greedily_and_streamed(client: openai.OpenAI) -> None:
    whole = ask(client, temperature=0).choices[0]
    chunks = list(ask(client, temperature=0, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.message.content
    assert json.loads(whole.message.content)["kind"] in ("green", "red")
    assert chunks[-1].choices[0].finish_reason == whole.finish_reason == "stop"


def test_a_tokenizer_that_can_not_be_read_is_refused(tmp_path: Path) -> None:
    with serving_random("qwen3_moe", "word_piece", tmp_path) as client:
        with pytest.raises(openai.BadRequestError, match="the bytes of this model's tokens are unknown") as error:
            ask(client)
        assert error.value.param == "response_format"
        assert ask(client, response_format={"type": "text"}, max_tokens=3).usage.completion_tokens <= 3
