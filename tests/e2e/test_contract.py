"""The HTTP contract of the server, tested on the real command; without routes of variants and adapters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.processes import Server

MODEL = "greenroom-demo"
NUM_LAYERS, TOP_K = 6, 2
MESSAGES = [{"role": "user", "content": "How do I boil rice?"}]
GREENROOM_USAGE = {"expert_requests", "expert_misses", "expert_bytes_read", "expert_stall_seconds"}
# Values that are none of the defaults.
PARAMETERS: dict[str, Any] = {
    "max_tokens": 4,
    "temperature": 0.5,
    "top_p": 0.8,
    "top_k": 20,
    "min_p": 0.01,
    "n": 2,
    "stop": ["never written"],
    "seed": 3,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "repetition_penalty": 1.1,
    "logit_bias": {"5": -100},
    "ignore_eos": True,
    "min_tokens": 2,
    "stop_token_ids": [7],
    "response_format": {"type": "text"},
    "user": "somebody",
    "priority": 1,
}
OF_CHATS: dict[str, Any] = {
    **PARAMETERS,
    "max_completion_tokens": 4,
    "logprobs": True,
    "top_logprobs": 2,
    "tools": [],
    "tool_choice": "none",
}
OF_COMPLETIONS: dict[str, Any] = {**PARAMETERS, "logprobs": 2, "echo": True}


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as http:
        yield http


def ask(http: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    reply = http.post(path, json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def events(http: httpx.Client, path: str, **body: Any) -> list[str]:
    """Return the data of each event of a stream."""
    reply = http.post(path, json={**body, "stream": True})
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/event-stream")
    blocks = reply.text.removesuffix("\n\n").split("\n\n")
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    return [block.removeprefix("data: ") for block in blocks]


def test_models_are_listed_and_found_by_name(http: httpx.Client) -> None:
    card = http.get("/v1/models").json()["data"][0]
    assert card["id"] == MODEL
    assert http.get(f"/v1/models/{MODEL}").json() == card
    assert http.get("/v1/models/other").json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", OF_CHATS)
def test_each_parameter_of_chats_is_accepted(http: httpx.Client, name: str, stream: bool) -> None:
    beside = {"logprobs": True} if name == "top_logprobs" else {}
    body = {"messages": MESSAGES, "max_tokens": 3, **beside, name: OF_CHATS[name]}
    if stream:
        assert events(http, "/v1/chat/completions", **body)[-1] == "[DONE]"
    else:
        assert ask(http, "/v1/chat/completions", **body)["object"] == "chat.completion"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", OF_COMPLETIONS)
def test_each_parameter_of_completions_is_accepted(http: httpx.Client, name: str, stream: bool) -> None:
    body = {"prompt": "Once", "max_tokens": 3, name: OF_COMPLETIONS[name]}
    if stream:
        assert events(http, "/v1/completions", **body)[-1] == "[DONE]"
    else:
        assert ask(http, "/v1/completions", **body)["object"] == "text_completion"


def test_all_parameters_go_together(http: httpx.Client) -> None:
    assert len(ask(http, "/v1/chat/completions", messages=MESSAGES, **OF_CHATS)["choices"]) == 2
    assert len(ask(http, "/v1/completions", prompt="Once", **OF_COMPLETIONS)["choices"]) == 2


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_chunks_of_a_stream_share_id_and_time_and_end_with_usage_and_done(http: httpx.Client, kind: str) -> None:
    path, body = {
        "chat": ("/v1/chat/completions", {"messages": MESSAGES}),
        "completion": ("/v1/completions", {"prompt": "Once"}),
    }[kind]
    *data, done = events(http, path, **body, max_tokens=5, stream_options={"include_usage": True})
    chunks = [json.loads(each) for each in data]
    assert done == "[DONE]"
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert set(chunks[-1]["usage"]["greenroom"]) == GREENROOM_USAGE
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]][-1] in {"stop", "length"}


def test_usage_has_the_cost_of_experts(http: httpx.Client) -> None:
    usage = ask(http, "/v1/completions", prompt="Once upon", max_tokens=5, ignore_eos=True)["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert set(usage["greenroom"]) == GREENROOM_USAGE
    assert usage["greenroom"]["expert_requests"] >= 4 * NUM_LAYERS * TOP_K


def test_tokens_carry_their_experts_when_asked(http: httpx.Client) -> None:
    reply = ask(http, "/v1/chat/completions", messages=MESSAGES, max_tokens=4, return_experts=True, ignore_eos=True)
    experts = reply["choices"][0]["experts"]
    assert [[len(layer) for layer in token] for token in experts] == [[TOP_K] * NUM_LAYERS] * 4


def test_a_request_id_comes_back(http: httpx.Client) -> None:
    assert http.get("/health", headers={"X-Request-Id": "mine-1"}).headers["X-Request-Id"] == "mine-1"
    assert len(http.get("/health").headers["X-Request-Id"]) == 32


def test_both_json_response_formats_give_json(http: httpx.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"dish": {"enum": ["rice", "soup"]}},
        "required": ["dish"],
        "additionalProperties": False,
    }
    named = {"type": "json_schema", "json_schema": {"name": "dish", "schema": schema}}
    reply = ask(http, "/v1/chat/completions", messages=MESSAGES, response_format=named)
    assert json.loads(reply["choices"][0]["message"]["content"])["dish"] in {"rice", "soup"}
    anything = {"type": "json_object"}
    reply = ask(http, "/v1/chat/completions", messages=MESSAGES, response_format=anything, seed=1)
    assert isinstance(json.loads(reply["choices"][0]["message"]["content"]), dict)


def test_embeddings_have_length_one(http: httpx.Client) -> None:
    (made,) = ask(http, "/v1/embeddings", model=MODEL, input="rice")["data"]
    assert sum(number**2 for number in made["embedding"]) == pytest.approx(1, abs=1e-5)


def test_texts_are_tokenized_and_detokenized(http: httpx.Client) -> None:
    parts = ask(http, "/tokenize", prompt="Boil the rice.")
    assert parts["count"] == len(parts["tokens"])
    assert ask(http, "/detokenize", tokens=parts["tokens"])["prompt"] == "Boil the rice."


def test_responses_and_messages_answer_in_their_own_formats(http: httpx.Client) -> None:
    """More of them: test_dialects."""
    assert ask(http, "/v1/responses", input="Hello", max_output_tokens=4)["object"] == "response"
    body = {"model": MODEL, "messages": MESSAGES, "max_tokens": 4}
    assert ask(http, "/v1/messages", **body)["type"] == "message"
    assert ask(http, "/v1/messages/count_tokens", model=MODEL, messages=MESSAGES)["input_tokens"] > 5


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", {"messages": MESSAGES, "temperature": 3}, "temperature"),
        ("/v1/completions", {"prompt": "x", "n": 0}, "n"),
        ("/v1/embeddings", {"input": []}, "input"),
        ("/v1/responses", {"input": "x", "previous_response_id": "r"}, "previous_response_id"),
        ("/tokenize", {}, "prompt"),
        ("/detokenize", {"tokens": [10**9]}, "tokens"),
    ],
)
def test_invalid_requests_are_400_in_the_format_of_openai(
    http: httpx.Client, path: str, body: dict[str, Any], param: str
) -> None:
    reply = http.post(path, json=body)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param


def test_experts_are_listed_one_by_one_and_together(http: httpx.Client) -> None:
    overview = http.get("/v1/experts").json()
    assert [len(layer["experts"]) for layer in overview["layers"]] == [16] * NUM_LAYERS
    assert http.get("/v1/experts/2/3").json().keys() == overview["layers"][2]["experts"][3].keys()
    assert http.get("/v1/experts/2/16").status_code == 404


def test_experts_are_pinned_unpinned_prefetched_and_evicted(http: httpx.Client) -> None:
    body = {"experts": [[5, 1]]}
    ask(http, "/v1/experts/evict", **body)
    assert http.get("/v1/experts/5/1").json()["residency"] == "disk"
    assert ask(http, "/v1/experts/prefetch", **body)["object"] == "experts.prefetch"
    assert ask(http, "/v1/experts/pin", **body)["changed"] == 1
    assert http.get("/v1/experts/5/1").json()["pinned"]
    assert ask(http, "/v1/experts/evict", **body)["changed"] == 0
    assert ask(http, "/v1/experts/unpin", **body)["changed"] == 1


def test_experts_are_streamed(http: httpx.Client) -> None:
    with http.stream("GET", "/v1/experts/stream", params={"interval": 0.1}) as reply:
        names = (line.removeprefix("event: ") for line in reply.iter_lines() if line.startswith("event: "))
        assert [next(names), next(names), next(names)] == ["snapshot", "update", "update"]


@pytest.mark.parametrize("path", ["/health", "/ready", "/version", "/metrics"])
def test_operations_are_open(http: httpx.Client, path: str) -> None:
    assert http.get(path).status_code == 200
