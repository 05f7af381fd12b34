"""Requests and parsed replies of each method, for both clients."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from typing import Any

import httpx
import pytest

import client
from client import (
    AsyncClient,
    ChatReply,
    Classification,
    Classifications,
    Client,
    Embeddings,
    Expert,
    ExpertChange,
    Health,
    Model,
    Routing,
    Token,
    TokenLogprob,
    ToolCall,
)
from tests.client.bodies import (
    COMPLETION,
    EXPERT,
    EXPERT_USAGE,
    EXPERTS,
    HEAD,
    REQUEST,
    REQUESTS,
    USAGE,
    event,
    streamed,
)
from tests.client.conftest import AnyClient

CALLS = {
    "complete": ["prompt", "options"],
    "stream": ["prompt", "options"],
    "chat": ["messages", "options"],
    "stream_chat": ["messages", "options"],
    "embed": ["inputs", "options"],
    "classify": ["inputs", "options"],
    "models": [],
    "experts": [],
    "expert": ["layer", "expert"],
    "watch_experts": ["interval"],
    "pin": ["experts"],
    "unpin": ["experts"],
    "prefetch": ["experts"],
    "evict": ["experts"],
    "variants": [],
    "load_variant": ["name", "path"],
    "unload_variant": ["name"],
    "adapters": [],
    "load_adapter": ["name", "path", "replace", "examples", "description"],
    "unload_adapter": ["name"],
    "requests": [],
    "metrics": [],
    "health": [],
    "ready": [],
}


def replying(body: Any, status: int = 200):
    return lambda _: httpx.Response(status, json=body)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_both_clients_have_the_same_methods(kind: type) -> None:
    methods = {
        name: list(inspect.signature(member).parameters)[1:]
        for name, member in vars(kind).items()
        if callable(member) and not name.startswith("_") and name not in ("close", "aclose")
    }
    assert methods == CALLS
    assert all(inspect.getdoc(getattr(kind, name)) for name in methods)


def test_exports_exist_and_are_sorted() -> None:
    assert all(hasattr(client, name) for name in client.__all__)
    assert client.__all__ == sorted(client.__all__)


def test_import_loads_neither_torch_nor_terminal_libraries() -> None:
    code = "import client, sys; print({'torch', 'prompt_toolkit', 'numpy', 'prometheus_client'} & sys.modules.keys())"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


def test_options_are_sent_unchanged(any_client: AnyClient) -> None:
    any_client.handler = replying(COMPLETION)
    any_client("complete", [1, 2], model="tiny", temperature=0.5, stop=["."], something_new={"a": 1})
    [request] = any_client.requests
    assert (request.method, request.url.path) == ("POST", "/v1/completions")
    assert json.loads(request.content) == {
        "prompt": [1, 2],
        "model": "tiny",
        "temperature": 0.5,
        "stop": ["."],
        "something_new": {"a": 1},
    }


def test_a_completion_is_typed(any_client: AnyClient) -> None:
    any_client.handler = replying(COMPLETION)
    reply = any_client("complete", "Once")
    assert (reply.id, reply.model, reply.created) == ("cmpl-1", "tiny", 1700000000)
    assert (reply.text, reply.finish_reason) == ("Once upon", "length")
    assert reply.usage.completion_tokens == 2
    assert reply.usage.cached_tokens == 1
    assert vars(reply.usage.greenroom) == {**EXPERT_USAGE, "expert_remote_bytes": 0, "prefill_passes": 0}
    with pytest.raises(AttributeError):
        reply.usage.completion_tokens = 3


def test_usage_without_experts(any_client: AnyClient) -> None:
    any_client.handler = replying(COMPLETION | {"usage": {**USAGE, "greenroom": None}})
    assert any_client("complete", "Once").usage.greenroom is None
    any_client.handler = replying(COMPLETION | {"usage": {**USAGE, "prompt_tokens_details": None}})
    assert any_client("complete", "Once").usage.cached_tokens == 0


def test_a_stream_yields_tokens_and_has_a_result(any_client: AnyClient) -> None:
    any_client.handler = lambda _: httpx.Response(200, content=streamed(["Once", " upon"]))
    tokens, reply = any_client.stream("stream", "Once")
    assert tokens == [Token("Once"), Token(" upon"), Token("", finish_reason="stop")]
    assert (reply.text, reply.finish_reason, reply.id, reply.model) == ("Once upon", "stop", "cmpl-1", "tiny")
    assert reply.usage.greenroom.expert_misses == 4
    assert json.loads(any_client.requests[0].content) == {
        "prompt": "Once",
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_chat_with_a_string_sends_one_message(any_client: AnyClient) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    message = {"role": "assistant", "content": None, "reasoning_content": "Hm.", "tool_calls": [call]}
    any_client.handler = replying(
        HEAD | {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}], "usage": USAGE}
    )
    reply = any_client("chat", "Add")
    assert json.loads(any_client.requests[0].content) == {"messages": [{"role": "user", "content": "Add"}]}
    assert (reply.text, reply.reasoning, reply.finish_reason) == ("", "Hm.", "tool_calls")
    assert reply.tool_calls == (ToolCall("c1", "add", '{"a": 1}'),)
    assert reply.message == {"role": "assistant", "content": "", "reasoning_content": "Hm.", "tool_calls": [call]}


def test_a_streamed_chat_joins_tool_calls_and_choices(any_client: AnyClient) -> None:
    def piece(index: int, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        return event(HEAD | {"choices": [{"index": index, "delta": delta, "finish_reason": finish_reason}]})

    def call(index: int, arguments: str, **first: Any) -> dict[str, Any]:
        return {
            "tool_calls": [{"index": index, **first, "function": {"arguments": arguments, "name": first.get("id")}}]
        }

    any_client.handler = lambda _: httpx.Response(
        200,
        content=piece(0, {"role": "assistant", "content": ""})
        + piece(1, {"reasoning_content": "Hm."})
        + piece(0, call(0, '{"a"', id="add"))
        + piece(0, call(1, "{}", id="sub"))
        + piece(0, call(0, ": 1}"), "tool_calls")
        + piece(1, {"content": "Hello"})
        + event("[DONE]"),
    )
    _, reply = any_client.stream("stream_chat", [{"role": "user", "content": "Add"}])
    assert isinstance(reply, ChatReply)
    assert reply.tool_calls == (ToolCall("add", "add", '{"a": 1}'), ToolCall("sub", "sub", "{}"))
    assert [(choice.index, choice.text, choice.reasoning) for choice in reply.choices] == [
        (0, "", ""),
        (1, "Hello", "Hm."),
    ]


def test_logprobs_of_both_forms(any_client: AnyClient) -> None:
    lists = {
        "tokens": ["a", "b"],
        "token_logprobs": [None, -0.5],
        "top_logprobs": [None, {"b": -0.5}],
        "text_offset": [0, 1],
    }
    any_client.handler = replying(COMPLETION | {"choices": [{"index": 0, "text": "ab", "logprobs": lists}]})
    assert any_client("complete", "", echo=True, logprobs=1).choices[0].logprobs == (
        TokenLogprob("a", None),
        TokenLogprob("b", -0.5, (("b", -0.5),)),
    )
    top = {"token": "c", "logprob": -1.5, "bytes": [99]}
    content = [{"token": "b", "logprob": -0.5, "bytes": [98], "top_logprobs": [top]}]
    choice = {"index": 0, "message": {"content": "b"}, "logprobs": {"content": content, "refusal": None}}
    any_client.handler = replying(COMPLETION | {"choices": [choice]})
    assert any_client("chat", "", logprobs=True).choices[0].logprobs == (TokenLogprob("b", -0.5, (("c", -1.5),)),)


ROUTING = {"method": "embedding", "model": "law", "reason": "It is closest.", "scores": {"law": 0.9, "tiny": 0.1}}


def test_the_choice_of_a_router_is_typed(any_client: AnyClient) -> None:
    any_client.handler = replying(COMPLETION | {"greenroom": {"routing": {**ROUTING, "seconds": 0.1}}})
    assert any_client("complete", "Once", model="auto").routing == Routing(**ROUTING)
    any_client.handler = replying(COMPLETION)
    assert any_client("complete", "Once").routing is None


def test_the_choice_of_a_router_comes_with_the_first_chunk_of_a_stream(any_client: AnyClient) -> None:
    first = event(HEAD | {"choices": [{"index": 0, "text": "A"}], "greenroom": {"routing": ROUTING}})
    any_client.handler = lambda _: httpx.Response(200, content=first + streamed(["b"]))
    assert any_client.stream("stream", "Once")[1].routing.model == "law"


def test_adapters_are_chosen_for_each_token(any_client: AnyClient) -> None:
    """The first chunk of a stream has no weights yet."""
    routing = {"method": "arrow", "model": "auto", "reason": "For each token.", "weights": {"law": 0.75, "code": 0.25}}
    told = {"greenroom": {"routing": routing}}
    chosen = [{"law": 1.0}, {"law": 0.5, "code": 0.5}]
    any_client.handler = replying(COMPLETION | told | {"choices": [{"index": 0, "text": "ab", "adapters": chosen}]})
    options = {"model": "auto", "routing": {"method": "arrow", "top_k": 2}, "return_adapters": True}
    reply = any_client("complete", "Once", **options)
    assert json.loads(any_client.requests[0].content) == {"prompt": "Once", **options}
    assert (reply.routing, reply.choices[0].adapters) == (Routing(**routing), tuple(chosen))
    assert reply.routing.scores == {}
    first = HEAD | {"greenroom": {"routing": routing | {"weights": {"law": 0.0, "code": 0.0}}}}
    chunks = [first | {"choices": [{"index": 0, "text": "a", "adapters": chosen[:1]}]}, HEAD | told | {"choices": []}]
    any_client.handler = lambda _: httpx.Response(200, content=b"".join(map(event, chunks)) + streamed(["b"]))
    tokens, result = any_client.stream("stream", "Once", **options)
    assert (tokens[0].adapters, result.routing) == (({"law": 1.0},), Routing(**routing))


def test_experts_of_tokens(any_client: AnyClient) -> None:
    chosen = [[[0, 3], [1, 2]], [[3, 0], [2, 1]]]
    any_client.handler = replying(COMPLETION | {"choices": [{"index": 0, "text": "ab", "experts": chosen}]})
    assert any_client("complete", "", return_experts=True).choices[0].experts == (((0, 3), (1, 2)), ((3, 0), (2, 1)))


def test_experts_returns_an_expert_map(any_client: AnyClient) -> None:
    any_client.handler = replying(EXPERTS)
    found = any_client("experts")
    assert (found.hit_ratio, found.optimal_hit_ratio, found.num_experts, found.total_bytes) == (0.5, 0.75, 6, 6144)
    assert list(found.tiers) == ["host"]
    assert found.tiers["host"].num_resident == 3
    assert found.layers[0].experts[0] == Expert(**EXPERT)
    assert [expert.tokens for expert in found.hottest(5)] == [70, 7]


def test_one_expert(any_client: AnyClient) -> None:
    any_client.handler = replying(EXPERT)
    assert any_client("expert", 1, 2) == Expert(**EXPERT)
    assert any_client.requests[0].url.path == "/v1/experts/1/2"


@pytest.mark.parametrize("verb", ["pin", "unpin", "prefetch", "evict"])
def test_experts_are_pinned_prefetched_and_evicted(any_client: AnyClient, verb: str) -> None:
    any_client.handler = replying({"object": f"experts.{verb}", "requested": 2, "changed": 1})
    assert any_client(verb, {(1, 2): None, (1, 3): None}) == ExpertChange(requested=2, changed=1)
    assert any_client.requests[0].url.path == f"/v1/experts/{verb}"
    assert json.loads(any_client.requests[0].content) == {"experts": [[1, 2], [1, 3]]}


def test_keys_are_sent_to_their_routes(any_client: AnyClient) -> None:
    any_client.handler = replying(EXPERTS)
    for options in ({}, {"api_key": "user"}, {"api_key": "user", "admin_api_key": "admin"}):
        any_client("experts", client=options)
    any_client.handler = replying({"data": []})
    any_client("models", client={"api_key": "user", "admin_api_key": "admin"})
    any_client("models", client={"admin_api_key": "admin"})
    keys = [request.headers.get("authorization") for request in any_client.requests]
    assert keys == [None, "Bearer user", "Bearer admin", "Bearer user", "Bearer admin"]


@pytest.mark.parametrize("key", ["", "two\nlines", " blank", "schlüssel"])
def test_keys_that_a_header_cannot_hold_are_refused(any_client: AnyClient, key: str) -> None:
    with pytest.raises(ValueError, match="api_key is invalid: it must be non-empty printable ASCII"):
        any_client("models", client={"api_key": key})
    assert any_client.requests == []


def test_models(any_client: AnyClient) -> None:
    card = {"id": "tiny", "object": "model", "created": 1, "owned_by": "greenroom"}
    any_client.handler = replying({"object": "list", "data": [card | {"max_model_len": 64}, card]})
    assert any_client("models") == [Model("tiny", 1, "greenroom", 64), Model("tiny", 1, "greenroom", None)]
    any_client.handler = replying({"object": "list", "data": [card | {"parent": "base"}]})
    assert any_client("models")[0].parent == "base"


def test_embeddings_come_in_the_order_of_the_inputs(any_client: AnyClient) -> None:
    items = [{"index": 1, "embedding": [0.0, 1.0]}, {"index": 0, "embedding": [1.0, 0.0]}]
    any_client.handler = replying({"model": "tiny", "data": items, "usage": {"prompt_tokens": 5}})
    assert any_client("embed", ["a", "b"], dimensions=2) == Embeddings("tiny", ((1.0, 0.0), (0.0, 1.0)), 5)
    assert json.loads(any_client.requests[0].content) == {
        "input": ["a", "b"],
        "encoding_format": "float",
        "dimensions": 2,
    }


def test_labels_have_the_probability_of_each(any_client: AnyClient) -> None:
    item = {"index": 0, "label": "glad", "probs": [0.25, 0.75], "num_classes": 2}
    any_client.handler = replying(
        {"model": "tiny", "data": [item], "labels": ["sad", "glad"], "usage": {"prompt_tokens": 2}}
    )
    expected = Classifications("tiny", (Classification("glad", {"sad": 0.25, "glad": 0.75}),), 2)
    assert any_client("classify", "hurrah") == expected
    assert any_client.requests[0].url.path == "/v1/classify"


def test_a_model_tells_what_it_is_for(any_client: AnyClient) -> None:
    meta = {"tasks": ["embed", "classify"], "labels": ["sad", "glad"]}
    card = {"id": "tiny", "object": "model", "created": 1, "owned_by": "greenroom", "meta": meta}
    any_client.handler = replying({"object": "list", "data": [card]})
    (model,) = any_client("models")
    assert (model.tasks, model.labels) == (("embed", "classify"), ("sad", "glad"))


@pytest.mark.parametrize(("status", "is_ok"), [(200, True), (503, False)])
@pytest.mark.parametrize("name", ["health", "ready"])
def test_an_unhealthy_server_is_no_error(any_client: AnyClient, name: str, status: int, is_ok: bool) -> None:
    any_client.handler = replying({"status": "loading"}, status)
    assert any_client(name) == Health("loading", is_ok)
    assert any_client.slept == []


def test_metrics_are_summed_by_label(any_client: AnyClient) -> None:
    text = (
        "# HELP greenroom_expert_lookups_total Experts asked for.\n# TYPE greenroom_expert_lookups_total counter\n"
        'greenroom_expert_lookups_total{tier="host",phase="decode"} 5.0\n'
        'greenroom_expert_lookups_total{tier="disk",phase="decode"} 2.0\n'
        'greenroom_expert_lookups_total{tier="disk",phase="prefill"} 1.0\n'
    )
    any_client.handler = lambda _: httpx.Response(200, text=text)
    metrics = any_client("metrics")
    assert metrics.total("expert_lookups_total") == 8
    assert metrics.total("greenroom_expert_lookups_total", tier="disk") == 3
    assert metrics.total("expert_lookups_total", tier="disk", phase="prefill") == 1
    assert metrics.total("expert_lookups_total", tier="device") == 0
    with pytest.raises(KeyError, match="no metric 'expert_lookup'"):
        metrics.total("expert_lookup")


def test_adapters_are_listed(any_client: AnyClient) -> None:
    adapter = {
        "name": "law",
        "path": "/adapters/law",
        "state": "resident",
        "tier": "host",
        "rank": 8,
        "bytes": 1024,
        "memory_bytes": 4096,
        "tokens": 57,
    }
    any_client.handler = replying({"data": [{**adapter, "requests": {"unfinished": 1, "total": 7}}]})
    assert any_client("adapters") == [client.Adapter(**adapter, num_unfinished=1, num_requests=7)]
    assert any_client.requests[0].url.path == "/v1/adapters"


def test_adapters_are_loaded_and_unloaded(any_client: AnyClient) -> None:
    any_client.handler = lambda _: httpx.Response(200, text="Success")
    any_client("load_adapter", "law", "path/of/law", replace=True, client={"admin_api_key": "secret"})
    any_client("unload_adapter", "law", client={"admin_api_key": "secret"})
    load, unload = any_client.requests
    assert (load.url.path, unload.url.path) == ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")
    assert json.loads(load.content) == {"lora_name": "law", "lora_path": "path/of/law", "load_inplace": True}
    assert json.loads(unload.content) == {"lora_name": "law"}
    assert {each.headers["Authorization"] for each in any_client.requests} == {"Bearer secret"}


def test_an_adapter_that_is_refused_raises_the_servers_reason(any_client: AnyClient) -> None:
    error = {"message": "no such folder", "type": "invalid_request_error", "param": "lora_path", "code": None}
    any_client.handler = replying({"error": error}, 400)
    with pytest.raises(client.BadRequestError, match="no such folder"):
        any_client("load_adapter", "law", "none")


def test_requests_are_listed(any_client: AnyClient) -> None:
    any_client.handler = replying(REQUESTS)
    (status,) = any_client("requests")
    assert (any_client.requests[0].url.path, status.id, status.state) == ("/v1/requests", REQUEST["id"], "decode")
    assert status.greenroom == client.ExpertUsage(**EXPERT_USAGE)
