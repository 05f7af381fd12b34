"""Metrics with little memory: two tiers above the disk, a short queue, a KV cache for one request."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.e2e.counted import Counted
from tests.e2e.processes import Server, serving

MODEL = "greenroom-demo"
NUM_LAYERS, NUM_EXPERTS, TOP_K = 6, 16, 2
SLOTS = {"device": 24, "host": 48}  # of 96 experts
WAYS_INTO = {"device": ["host"], "host": ["disk", "device"]}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(
        *("--dtype", "float32", "--device-expert-memory", "25%", "--host-expert-memory", "50%"),
        *("--kv-cache-memory", "200KiB", "--max-queued-requests", "2"),
    ) as running:
        yield running


def complete(http: httpx.Client, prompt: str, max_tokens: int, **more: Any) -> httpx.Response:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True, **more}
    return http.post("/v1/completions", json=body)


def test_prefill_and_decode_are_counted_separately(http: httpx.Client, counted: Counted) -> None:
    reply = complete(http, "Prefill and decode", 11).json()
    asked = reply["usage"]["greenroom"]["expert_requests"]
    assert counted.growth("engine_steps_total", 'phase="prefill"') == 1
    assert counted.growth("engine_steps_total", 'phase="decode"') == 10
    assert counted.growth("expert_lookups_total", 'phase="decode"') == 10 * NUM_LAYERS * TOP_K
    assert counted.growth("expert_lookups_total", 'phase="prefill"') == asked - 10 * NUM_LAYERS * TOP_K
    for phase in ("prefill", "decode"):
        seconds = counted.growth("engine_step_seconds_total", f'phase="{phase}"')
        assert 0 <= counted.growth("expert_stall_seconds_total", f'phase="{phase}"') < seconds


def test_a_prompt_alone_decodes_nothing(http: httpx.Client, counted: Counted) -> None:
    complete(http, "A prompt and one token", 1).raise_for_status()
    assert counted.growth("engine_steps_total", 'phase="prefill"') == 1
    for name in ("engine_steps", "engine_step_seconds", "expert_lookups", "expert_stall_seconds"):
        assert counted.growth(f"{name}_total", 'phase="decode"') == 0
    assert counted.growth("inter_token_latency_seconds_count") == 0


def test_experts_loaded_into_a_tier_are_resident_or_evicted(
    http: httpx.Client, counted: Counted, server: Server
) -> None:
    usage = complete(http, "What came into a tier", 20).json()["usage"]["greenroom"]
    slot_bytes = server.total("expert_resident_bytes") / server.total("expert_resident")
    for tier, sources in WAYS_INTO.items():
        of_tier = f'tier="{tier}"'
        loads = 0.0
        for source in sources:
            way = (f'source="{source}"', f'target="{tier}"')
            moved = counted.growth("expert_load_seconds_count", *way)
            assert counted.growth("expert_load_seconds_bucket", 'le="+Inf"', *way) == moved
            assert counted.growth("expert_loaded_bytes_total", *way) == moved * slot_bytes
            loads += moved
        assert loads > 0
        assert counted.growth("expert_evictions_total", of_tier) == loads - counted.growth("expert_resident", of_tier)
        assert server.total("expert_slots", of_tier) == SLOTS[tier]
        assert server.total("expert_budget_bytes", of_tier) == SLOTS[tier] * slot_bytes
        assert server.total("expert_resident", of_tier) <= SLOTS[tier]
    found = [counted.growth("expert_lookups_total", f'tier="{tier}"') for tier in ("device", "host", "disk")]
    assert sum(found) == usage["expert_requests"]
    assert found[-1] == usage["expert_misses"]
    assert min(found) > 0


def test_each_prefetched_expert_is_used_or_late_once_it_is_requested(http: httpx.Client, server: Server) -> None:
    everything = [[layer, expert] for layer in range(NUM_LAYERS) for expert in range(NUM_EXPERTS)]
    http.post("/v1/experts/evict", json={"experts": everything}).raise_for_status()
    fetched = [[0, expert] for expert in range(8)]
    counted = Counted(server)
    reply = http.post("/v1/experts/prefetch", json={"experts": fetched})
    assert reply.raise_for_status().json()["changed"] == len(fetched)
    complete(http, "Used or late", 1).raise_for_status()
    asked = [
        expert
        for layer, expert in fetched
        if counted.growth("expert_tokens_total", f'layer="{layer}"', f'expert="{expert}"')
    ]
    outcomes = [counted.growth("expert_prefetches_total", f'outcome="{name}"') for name in ("used", "late", "wasted")]
    assert 0 < len(asked) == outcomes[0] + outcomes[1]
    assert outcomes[2] <= len(fetched) - len(asked)


@pytest.mark.parametrize("predictor", ["gate", "coactivation"])
def test_correct_predictions_are_counted_among_them(http: httpx.Client, counted: Counted, predictor: str) -> None:
    complete(http, "Predictions", 40).raise_for_status()
    predicted = counted.growth("expert_predictions_total", f'predictor="{predictor}"')
    correct = counted.growth("expert_correct_predictions_total", f'predictor="{predictor}"')
    assert 0 < correct <= predicted


def test_running_requests_and_their_kv_cache_are_shown(server: Server) -> None:
    with (
        server.client() as client,
        client.completions.create(
            model=MODEL, prompt="Running", max_tokens=50, stream=True, extra_body={"ignore_eos": True}
        ) as stream,
    ):
        next(stream)
        samples = server.metrics()
        assert samples["greenroom_num_requests_running"] == 1
        assert samples["greenroom_num_requests_waiting"] == 0
        assert 0 < samples["greenroom_kv_cache_usage_perc"] <= 1
        for _ in stream:
            pass
    Counted(server)  # waits until it rests
    assert server.total("num_requests_running") == server.total("kv_cache_usage_perc") == 0


def test_requests_that_do_not_fit_together_are_preempted(http: httpx.Client, counted: Counted) -> None:
    complete(http, "Two choices of one prompt", 40, n=2).raise_for_status()
    assert counted.growth("num_preemptions_total") > 0
    assert counted.growth("generation_tokens_total") == 80
    assert counted.ended("length") == 2
    assert counted.latencies() == [2, 2, 78, 2]


def test_each_request_that_finds_the_queue_full_is_counted(
    server: Server, http: httpx.Client, counted: Counted
) -> None:
    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(lambda number: complete(http, f"Request {number}", 30), range(16)))
    statuses = [reply.status_code for reply in replies]
    assert set(statuses) == {200, 429}
    assert counted.growth("requests_refused_total") == statuses.count(429)
    assert counted.growth("request_success_total") == counted.ended("length") == statuses.count(200)
    assert server.total("num_requests_waiting") == 0
