"""``/v1/embeddings`` over a socket: the real engine with a fake model, called by the openai package."""

from __future__ import annotations

import base64
import math
import struct
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from server.engine.text.codec import Codec
from tests.server.engine.fakes import Rig, continuation, hidden_state
from tests.server.live.conftest import FakeServer, serving_rig
from tests.server.live.requests import post as request


@pytest.fixture
def client(live: FakeServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{live.port}/v1", api_key="none", max_retries=0) as client:
        yield client


def post(live: FakeServer, **body: Any) -> httpx.Response:
    return httpx.post(f"http://127.0.0.1:{live.port}/v1/embeddings", json=body, timeout=30)


def unit(vector: Sequence[float]) -> list[float]:
    length = math.sqrt(sum(number * number for number in vector))
    return [number / length for number in vector]


def states(tokens: Sequence[int]) -> list[list[float]]:
    return [hidden_state(tokens[: end + 1]) for end in range(len(tokens))]


def mean(tokens: Sequence[int]) -> list[float]:
    return unit(np.mean(states(tokens), axis=0).tolist())


def last(tokens: Sequence[int]) -> list[float]:
    return unit(states(tokens)[-1])


def test_the_openai_package_gets_the_mean_of_a_prompt_in_chunks(client: openai.OpenAI) -> None:
    """The package requests base64 by default; the prompt is longer than a step."""
    tokens = [place % 200 for place in range(700)]
    reply = client.embeddings.create(model="fake", input=tokens)
    assert (reply.object, reply.model, len(reply.data)) == ("list", "fake", 1)
    assert (reply.data[0].object, reply.data[0].index) == ("embedding", 0)
    assert reply.data[0].embedding == pytest.approx(mean(tokens))
    assert (reply.usage.prompt_tokens, reply.usage.total_tokens) == (700, 700)
    assert reply.usage.model_extra is not None
    assert reply.usage.model_extra["greenroom"]["expert_requests"] == 700


def test_both_encodings_hold_the_same_vectors(live: FakeServer) -> None:
    tokens = [1, 2, 3]
    written = post(live, input=tokens, encoding_format="base64").json()["data"][0]["embedding"]
    numbers = post(live, input=tokens).json()["data"][0]["embedding"]
    assert list(struct.unpack("<3f", base64.b64decode(written))) == numbers == pytest.approx(mean(tokens))


@pytest.mark.slow
def test_inputs_keep_their_order_and_may_exceed_the_running_and_queued_requests(client: openai.OpenAI) -> None:
    inputs = [[number % 256, number // 256, 7] for number in range(600)]
    reply = client.embeddings.create(model="fake", input=inputs)
    assert [each.index for each in reply.data] == list(range(600))
    for each, tokens in zip(reply.data, inputs, strict=True):
        assert each.embedding == pytest.approx(mean(tokens))


def test_texts_are_equal_to_their_tokens(live: FakeServer, codec: Codec) -> None:
    assert post(live, input="ab").json()["data"][0]["embedding"] == pytest.approx(mean(codec.encode("ab")))
    both = post(live, input=["ab", "ab"]).json()
    one = post(live, input="ab").json()
    assert both["data"][0]["embedding"] == both["data"][1]["embedding"] == one["data"][0]["embedding"]
    assert both["usage"]["prompt_tokens"] == 2 * one["usage"]["prompt_tokens"]


def test_the_last_token_may_stand_for_all(live: FakeServer) -> None:
    assert post(live, input=[5, 6, 7], pooling="last").json()["data"][0]["embedding"] == pytest.approx(last([5, 6, 7]))


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_cached_blocks_change_nothing(pooling: str, live: FakeServer) -> None:
    """Pooling "last" needs only the last token's state, so it can use cached blocks, as a completion can."""
    tokens, url = list(range(41)), f"http://127.0.0.1:{live.port}/v1/completions"
    first = post(live, input=tokens, pooling=pooling).json()
    text = httpx.post(url, json={"prompt": tokens, "max_tokens": 5, "temperature": 0}).json()["choices"][0]["text"]
    second = post(live, input=tokens, pooling=pooling).json()
    assert second["data"] == first["data"]
    assert text == continuation(tokens, 5)
    charged = [reply["usage"]["greenroom"]["expert_requests"] for reply in (first, second)]
    assert charged == [41, 41 if pooling == "mean" else 1]


def test_fewer_dimensions_are_the_first_ones_at_length_one(live: FakeServer) -> None:
    whole = post(live, input=[9, 8, 7]).json()["data"][0]["embedding"]
    part = post(live, input=[9, 8, 7], dimensions=2).json()["data"][0]["embedding"]
    assert part == pytest.approx(unit(whole[:2]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "param", "sentence"),
    [
        ({}, "input", "'input' is required."),
        ({"input": ""}, "input", "'input' must not hold an empty string or list."),
        ({"input": [[1], []]}, "input", "'input' must not hold an empty string or list."),
        ({"input": []}, "input", "'input' must be a string, a list of token ids"),
        ({"input": ["a", 1]}, "input", "'input' must hold valid Unicode strings only"),
        ({"input": [[1]] * 2049}, "input", "'input' must hold no more than 2048 inputs, but holds 2049"),
        ({"input": [1, 256]}, "input", "token id 256 is not below 256"),
        ({"input": [[1], [1] * 8193]}, "input", "maximum context length is 8192 tokens, but an input has 8193"),
        ({"input": [1], "dimensions": 4}, "dimensions", "'dimensions' is 4, but this model's vectors have 3."),
        ({"input": [1], "dimensions": 0}, "dimensions", "'dimensions': input should be greater than or equal to 1"),
        ({"input": [1], "encoding_format": "int8"}, "encoding_format", "'encoding_format': input should be 'float'"),
        ({"input": [1], "pooling": "max"}, "pooling", "'pooling': input should be 'mean' or 'last'"),
        ({"input": [1], "timeout": 0}, "timeout", "'timeout': input should be greater than 0"),
    ],
)
def test_bad_input_is_named(body: dict[str, Any], param: str, sentence: str, live: FakeServer) -> None:
    answer = post(live, **body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert sentence in answer.json()["error"]["message"]


def test_a_model_without_hidden_states_says_so(live: FakeServer) -> None:
    live.rig.model.hidden_size = 0
    answer = post(live, input=[1])
    assert answer.status_code == 400
    assert "gives no embeddings" in answer.json()["error"]["message"]


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.embeddings.create(model="another", input="a")


def test_nan_states_fail_only_their_own_request(live: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(tokens: Sequence[int]) -> list[float]:
        return [math.nan if tokens[0] == 66 else 1.0, 2.0, 2.0]

    monkeypatch.setattr("tests.server.engine.fakes.hidden_state", broken)
    answer = post(live, input=[[66, 1], [1, 2]])
    assert answer.status_code == 500
    assert "not finite" in answer.json()["error"]["message"]
    assert post(live, input=[1, 2]).json()["data"][0]["embedding"] == pytest.approx([1 / 3, 2 / 3, 2 / 3])


def test_a_client_that_leaves_cancels_its_inputs(codec: Codec) -> None:
    """Inputs that were not submitted yet are dropped, too."""
    with serving_rig(Rig(num_blocks=64, max_running=2, max_batched_tokens=8), codec) as live:
        begun, may_go = threading.Event(), threading.Event()
        live.rig.model.before_step = lambda: (begun.set(), may_go.wait(30))[0]
        with live.connect() as connection:
            connection.sendall(request("/v1/embeddings", input=[[number, 3] for number in range(100)]))
            assert begun.wait(30)
        live.wait_until_left()
        may_go.set()
        while not live.engine.statistics.finished["abort"]:
            threading.Event().wait(0.01)
        live.wait_until_idle()
        assert live.engine.statistics.kv_cache_usage == 0
        assert live.engine.num_submitted <= 32


def test_a_deadline_ends_it(live: FakeServer) -> None:
    late = iter(range(0, 100_000, 1000))
    live.engine.clock = lambda: float(next(late))
    answer = post(live, input=[1, 2, 3], timeout=5)
    assert answer.status_code == 504
    assert answer.json()["error"]["message"] == "the request was not done within 5 seconds"
