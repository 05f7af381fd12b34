"""`greenroom serve` with a model that computes requests one after the other."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.byte_tokenizer import save_byte_tokenizer
from tests.checkpoints import save_checkpoint
from tests.e2e.processes import Server, serving
from tests.families import make_config

GREEDY: Any = {"model": "solo", "temperature": 0, "extra_body": {"ignore_eos": True, "return_experts": True}}
QUESTION: Any = [{"role": "user", "content": "Who waits?"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("checkpoints") / "solo"
    config = make_config("inkling_text")
    config.vocab_size, config.unpadded_vocab_size, config.max_position_embeddings = 257, None, 4096
    config.eos_token_id = 256
    save_checkpoint(config, folder)
    save_byte_tokenizer(folder, special=("<|end_of_text|>",))
    with serving(str(folder), "--dtype", "float32", "--deterministic") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_completion_is_the_same_alone_and_with_others(client: openai.OpenAI) -> None:
    alone = client.completions.create(prompt="Once", max_tokens=12, **GREEDY)
    among = client.completions.create(prompt=["Twice", "Once", "Thrice"], max_tokens=12, **GREEDY)
    assert alone.usage is not None
    assert alone.usage.completion_tokens == 12
    assert among.choices[1].text == alone.choices[0].text
    assert among.choices[0].text != alone.choices[0].text


def test_streamed_and_complete_chats_are_the_same(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(messages=QUESTION, max_tokens=16, **GREEDY).choices[0]
    chunks = list(client.chat.completions.create(messages=QUESTION, max_tokens=16, stream=True, **GREEDY))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.message.content
    assert chunks[-1].choices[0].finish_reason == whole.finish_reason == "length"
    experts = [token for chunk in chunks for token in chunk.choices[0].model_extra["experts"]]
    assert experts == whole.model_extra["experts"]
    assert len(experts) == 16
    assert len({tuple(chosen) for token in experts for chosen in token}) > 1


def test_a_client_that_leaves_delays_no_other(server: Server, client: openai.OpenAI) -> None:
    with client.chat.completions.create(messages=QUESTION, max_tokens=4000, n=3, stream=True, **GREEDY) as stream:
        next(iter(stream))
    assert client.completions.create(prompt="Next", max_tokens=4, **GREEDY).choices[0].finish_reason == "length"
    while server.total("num_requests_running"):
        threading.Event().wait(0.02)
    assert server.total("kv_cache_usage_perc") == 0
    assert server.total("request_success_total", 'finished_reason="abort"') == 3
    assert server.total("generation_tokens_total") < 4000
