"""Metrics of a real server: every promised name, and the effect of known requests on each counter."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.memory_use.server import anonymous_bytes
from server.memory.machine import CHILDREN_SECONDS
from tests.dashboards import DOCKER, OF_SERVERS
from tests.e2e.counted import Counted
from tests.e2e.processes import Server

MODEL = "greenroom-demo"
NUM_LAYERS, NUM_EXPERTS, TOP_K = 6, 16, 2
END = 2  # <|im_end|>
# Type and labels of each name.
PROMISED: dict[str, tuple[str, set[str]]] = {
    "expert_lookups_total": ("counter", {"tier", "phase"}),
    "expert_evictions_total": ("counter", {"tier"}),
    "expert_load_failures_total": ("counter", {"tier"}),
    "expert_loaded_bytes_total": ("counter", {"source", "target"}),
    "expert_load_seconds": ("histogram", {"source", "target"}),
    "expert_stall_seconds_total": ("counter", {"phase"}),
    "expert_slots": ("gauge", {"tier"}),
    "expert_resident": ("gauge", {"tier"}),
    "expert_pinned": ("gauge", {"tier"}),
    "expert_tokens_total": ("counter", {"layer", "expert"}),
    "expert_prefetches_total": ("counter", {"outcome"}),
    "expert_optimal_hit_ratio": ("gauge", set()),
    "expert_hit_ratio": ("gauge", set()),
    "memory_bytes": ("gauge", {"part"}),
    "memory_budget_bytes": ("gauge", set()),
    "memory_adjustments_total": ("counter", {"action", "reason"}),
    "num_requests_running": ("gauge", set()),
    "num_requests_waiting": ("gauge", set()),
    "kv_cache_usage_perc": ("gauge", set()),
    "prompt_tokens_total": ("counter", set()),
    "generation_tokens_total": ("counter", set()),
    "prefix_cache_hits_total": ("counter", set()),
    "prefix_cache_queries_total": ("counter", set()),
    "num_preemptions_total": ("counter", set()),
    "request_success_total": ("counter", {"finished_reason"}),
    "time_to_first_token_seconds": ("histogram", set()),
    "inter_token_latency_seconds": ("histogram", set()),
    "e2e_request_latency_seconds": ("histogram", set()),
    "request_queue_time_seconds": ("histogram", set()),
}


def test_every_promised_metric_is_there_with_its_type_and_labels(client: openai.OpenAI, http: httpx.Client) -> None:
    client.completions.create(model=MODEL, prompt="A", max_tokens=2)
    families = {
        f"{family.name}_total" if family.type == "counter" else family.name: family
        for family in text_string_to_metric_families(http.get("/metrics").text)
    }
    for name, (kind, labels) in PROMISED.items():
        family = families[f"greenroom_{name}"]
        assert family.type == kind
        assert family.samples
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == labels, sample
    assert len(families["greenroom_expert_tokens_total"].samples) == NUM_LAYERS * NUM_EXPERTS


def test_operators_can_look_up_every_metric(http: httpx.Client) -> None:
    told = set(re.findall(r"[a-z0-9_]+", (Path(__file__).parents[2] / "docs/operations.md").read_text()))
    names = re.findall(r"^# TYPE greenroom_(\w+)", http.get("/metrics").text, re.MULTILINE)
    assert set(names) <= told


def test_rules_and_dashboards_query_existing_metrics(http: httpx.Client, client: openai.OpenAI) -> None:
    client.completions.create(model=MODEL, prompt="A", max_tokens=2)
    # A metric by variant has no sample while no variant is loaded.
    text = http.get("/metrics").text
    there = set(re.findall(r"^(?:# TYPE )?(greenroom_\w+)", text, re.MULTILINE))
    there |= {f"{name}_bucket" for name in re.findall(r"^# TYPE (greenroom_\w+) histogram", text, re.MULTILINE)}
    asked: set[str] = set()
    for path in (DOCKER / "prometheus/rules.yml", *OF_SERVERS):
        asked |= set(re.findall(r"\bgreenroom_\w+", path.read_text()))
    assert asked <= there


def test_choices_are_counted_one_by_one(client: openai.OpenAI, counted: Counted) -> None:
    reply = client.completions.create(
        model=MODEL, prompt="Choices are counted one by one", max_tokens=5, n=2, extra_body={"ignore_eos": True}
    )
    assert reply.usage is not None
    assert counted.ended("length") == 2
    assert counted.growth("request_success_total") == 2
    assert counted.growth("generation_tokens_total") == 10
    assert counted.latencies() == [2, 2, 8, 2]
    num_computed = counted.growth("prompt_tokens_total")
    assert counted.growth("prefix_cache_queries_total") == 2 * reply.usage.prompt_tokens
    assert counted.growth("prefix_cache_hits_total") == 2 * reply.usage.prompt_tokens - num_computed
    # Of each choice, the last token is not computed.
    assert counted.growth("expert_tokens_total") == (num_computed + 2 * 4) * NUM_LAYERS * TOP_K
    assert counted.growth("engine_steps_total", 'phase="decode"') >= 4
    assert counted.growth("engine_steps_total", 'phase="prefill"') >= 1
    assert counted.growth("num_preemptions_total") == 0


def test_experts_come_and_go_as_they_are_counted(client: openai.OpenAI, counted: Counted, server: Server) -> None:
    reply = client.completions.create(
        model=MODEL, prompt="Experts come and go", max_tokens=20, extra_body={"ignore_eos": True}
    )
    assert reply.usage is not None
    usage: dict[str, Any] = (reply.usage.model_extra or {})["greenroom"]
    num_read = counted.growth("expert_load_seconds_count", 'source="disk"')
    assert counted.growth("expert_lookups_total") == usage["expert_requests"]
    assert counted.growth("expert_lookups_total", 'tier="disk"') == usage["expert_misses"] <= num_read
    assert counted.growth("expert_resident") == num_read - counted.growth("expert_evictions_total")
    assert counted.growth("expert_loaded_bytes_total") >= usage["expert_bytes_read"] > 0
    assert counted.growth("expert_stall_seconds_total") == pytest.approx(usage["expert_stall_seconds"])
    assert counted.growth("engine_step_seconds_total") >= usage["expert_stall_seconds"]
    assert counted.growth("expert_load_failures_total") == 0
    assert 0 <= server.total("expert_hit_ratio") <= 1
    assert 0 < server.total("expert_optimal_hit_ratio") <= 1


def test_a_text_that_stops_at_once_has_one_token(client: openai.OpenAI, counted: Counted) -> None:
    client.completions.create(model=MODEL, prompt="Stop", max_tokens=9, logit_bias={str(END): 100}, temperature=0)
    assert counted.ended("stop") == counted.growth("request_success_total") == 1
    assert counted.growth("generation_tokens_total") == 1
    assert counted.latencies() == [1, 1, 0, 1]


def test_embeddings_are_requests_without_tokens(client: openai.OpenAI, counted: Counted) -> None:
    client.embeddings.create(model=MODEL, input=["one", "two", "three"])
    assert counted.ended("stop") == counted.growth("request_success_total") == 3
    assert counted.growth("generation_tokens_total") == 0
    assert counted.latencies() == [3, 0, 0, 3]


def test_a_client_that_leaves_is_an_abort(client: openai.OpenAI, counted: Counted) -> None:
    with client.completions.create(
        model=MODEL, prompt="Leave", max_tokens=400, stream=True, extra_body={"ignore_eos": True}
    ) as stream:
        next(stream)
    counted.wait_for("request_success_total")
    assert counted.ended("abort") == counted.growth("request_success_total") == 1
    num_tokens = counted.growth("generation_tokens_total")
    assert counted.latencies() == [1, 1, num_tokens - 1, 0]


def test_a_request_that_times_out_in_the_queue_never_left_it(http: httpx.Client, counted: Counted) -> None:
    reply = http.post("/v1/completions", json={"model": MODEL, "prompt": "Late", "max_tokens": 9, "timeout": 1e-9})
    assert reply.status_code == 504
    assert counted.ended("deadline") == counted.growth("request_success_total") == 1
    assert counted.latencies() == [0, 0, 0, 0]
    assert counted.growth("prompt_tokens_total") == 0


def test_made_up_names_of_clients_make_no_metric(http: httpx.Client, counted: Counted, server: Server) -> None:
    before = set(server.metrics())
    for number in range(50):
        body = {"model": f"unknown-{number}", "prompt": "A", "max_tokens": 1, "user": f"user-{number}"}
        assert http.post("/v1/completions", json=body).status_code == 404
        assert http.post("/v1/embeddings", json=body | {"input": "A"}).status_code == 404
        assert http.get(f"/unknown-{number}").status_code == 404
    assert http.post("/v1/completions", json={"model": MODEL, "prompt": "A", "max_tokens": -2}).status_code == 400
    assert set(server.metrics()) == before
    assert counted.growth("request_success_total") == 0
    assert counted.latencies() == [0, 0, 0, 0]


def test_memory_parts_add_up(server: Server) -> None:
    """The parts are at least the kernel's number for the process, and at most the budget."""
    deadline = time.monotonic() + 2 * CHILDREN_SECONDS
    while (told := server.total("memory_bytes")) < 0.95 * anonymous_bytes(server.process.pid):
        assert time.monotonic() < deadline  # a child process counts some seconds after its start
        time.sleep(0.1)
    assert told <= server.total("memory_budget_bytes")
    assert server.total("memory_bytes", 'part="trunk"') > 0
    assert server.total("memory_bytes", 'part="experts"') == server.total("expert_resident_bytes")


def test_pins_and_evictions_by_hand_are_shown(http: httpx.Client, server: Server) -> None:
    experts = {"experts": [[0, 3]]}
    http.post("/v1/experts/pin", json=experts).raise_for_status()
    try:
        assert server.total("expert_pinned") == 1
    finally:
        http.post("/v1/experts/unpin", json=experts).raise_for_status()
    assert server.total("expert_pinned") == 0
    resident, evicted = server.total("expert_resident"), server.total("expert_evictions_total")
    http.post("/v1/experts/evict", json=experts).raise_for_status()
    assert server.total("expert_resident") == resident - 1
    assert server.total("expert_evictions_total") == evicted + 1
