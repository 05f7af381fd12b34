"""Experts of a real server: cost of requests, experts of tokens, pinning and evicting."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from tests.e2e.processes import Server, serving

NUM_LAYERS, TOP_K = 6, 2
COUNTERS = ("expert_lookups_total", "expert_loaded_bytes_total", "expert_stall_seconds_total")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving("--host-expert-memory", "25%", "--dtype", "float32", "--prefetch", "off") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return server.client()


def counted(server: Server) -> list[float]:
    """Look-ups, those of them that went to the disk, bytes from there, and seconds of waiting."""
    lookups, loaded, stalls = COUNTERS
    return [
        server.total(lookups), server.total(lookups, 'tier="disk"'), server.total(loaded), server.total(stalls)
    ]  # fmt: skip


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_request_alone_is_charged_all_that_is_counted(stream: bool, server: Server, client: openai.OpenAI) -> None:
    """A prompt of several chunks and its answer, twice, of which the second finds its beginning in the cache."""
    options: dict[str, Any] = {
        "model": "greenroom-demo",
        "prompt": "To be, or not to be. " * 20,
        "max_tokens": 12,
        "extra_body": {"ignore_eos": True},  # answers of one length
    }
    if stream:
        options |= {"stream": True, "stream_options": {"include_usage": True}}
    charges = []
    for _ in range(2):
        before = counted(server)
        reply = client.completions.create(**options)
        usage = (list(reply)[-1] if stream else reply).usage
        charge = usage.model_extra["greenroom"]
        assert list(charge.values()) == pytest.approx(
            [after - earlier for earlier, after in zip(before, counted(server), strict=True)]
        )
        charges.append(charge)
    assert charges[0]["expert_misses"] > 0
    assert charges[1]["expert_requests"] < charges[0]["expert_requests"] or stream  # a stream's prompt is known already


def test_a_request_in_a_batch_is_charged_for_its_own_tokens(client: openai.OpenAI) -> None:
    """The choices of one prompt decode together; each token asks for two experts a layer."""
    reply = client.completions.create(
        model="greenroom-demo", prompt="A", max_tokens=9, n=4, extra_body={"ignore_eos": True, "return_experts": True}
    )
    assert reply.usage is not None
    assert reply.usage.model_extra is not None
    num_steps = 4 * 8 + 1  # the prompt, a token, is computed once; the last token of a choice never is
    assert reply.usage.prompt_tokens == 1
    assert reply.usage.model_extra["greenroom"]["expert_requests"] >= num_steps * NUM_LAYERS * TOP_K


def test_tokens_have_their_experts(client: openai.OpenAI) -> None:
    body = {"ignore_eos": True, "return_experts": True}
    chat: dict[str, Any] = {
        "model": "greenroom-demo",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 7,
        "temperature": 0,
        "extra_body": body,
    }
    experts = client.chat.completions.create(**chat).choices[0].model_extra["experts"]
    chunks = [chunk.choices[0].model_extra["experts"] for chunk in client.chat.completions.create(**chat, stream=True)]
    assert [token for tokens in chunks for token in tokens] == experts
    assert len(experts) == 7
    for token in experts:
        assert [len(set(layer)) for layer in token] == [TOP_K] * NUM_LAYERS


def test_experts_are_pinned_and_evicted_while_requests_are_answered(server: Server, client: openai.OpenAI) -> None:
    def post(action: str) -> int:
        answer = httpx.post(f"{server.url}/v1/experts/{action}", json={"experts": [[0, 0], [5, 3]]})
        return int(answer.json()["changed"])

    text = client.completions.create(model="greenroom-demo", prompt="Once", max_tokens=9, temperature=0).choices[0].text
    assert post("pin") == 2
    again = client.completions.create(model="greenroom-demo", prompt="Once", max_tokens=9, temperature=0)
    assert again.choices[0].text == text
    overview = httpx.get(f"{server.url}/v1/experts").json()
    assert overview["tiers"]["host"]["num_pinned"] == 2
    assert overview["layers"][5]["experts"][3]["residency"] == "host"
    assert overview["loaded_bytes"] == server.total("expert_loaded_bytes_total")
    assert post("evict") == 0
    assert post("unpin") == 2
    assert post("evict") == 2


def test_texts_that_mean_the_same_are_closer_than_others(client: openai.OpenAI) -> None:
    texts = ["The cat sat on the mat.", "A cat sits on a mat.", "def f(x): return x + 1"]
    reply = client.embeddings.create(model="greenroom-demo", input=texts)
    vectors = np.array([each.embedding for each in reply.data])
    close, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert (vectors * vectors).sum(1) == pytest.approx([1, 1, 1])
    assert close > far + 0.2
