"""Size of the KV cache, and its division among groups of layers."""

from __future__ import annotations

import pytest
import torch

from server.memory.kv_cache_plan import BLOCK_SIZE, KVPlan, plan_kv_cache
from server.model.attention.kv_cache import KVGroup, KVShape
from server.settings import ServeSettings, SettingsError

SHAPE = KVShape(2, 8, 8, torch.bfloat16)  # 64 bytes a token and layer


def group(window: int | None, num_layers: int) -> KVGroup:
    return KVGroup(window, dict.fromkeys(range(num_layers), SHAPE))


def plan(*groups: KVGroup, longest: int = 1024, free_bytes: int = 1 << 40, **settings: object) -> KVPlan:
    return plan_kv_cache(ServeSettings.model_validate(settings), groups, longest, free_bytes=free_bytes)


def test_groups_with_full_attention_get_blocks_for_the_budget() -> None:
    made = plan(group(None, 4), kv_cache_memory=str(256 * 5000))
    assert made.num_blocks == [5000 // BLOCK_SIZE]
    assert made.nbytes <= 256 * 5000
    assert made.max_model_len == 1024


def test_auto_holds_every_running_request_or_an_eighth_of_free_memory() -> None:
    assert plan(group(None, 4), max_running_requests=3).num_tokens == 3 * 1024
    assert plan(group(None, 4), free_bytes=8 * 256 * 2048).num_tokens == 2048


def test_a_window_gets_no_more_blocks_than_running_requests_need() -> None:
    made = plan(group(None, 2), group(100, 2), max_running_requests=2, max_batched_tokens=60, longest=100_000)
    assert made.num_blocks == [2 * 100_000 // BLOCK_SIZE, 2 * 11]
    assert [each.window for each in made.block_groups] == [None, 100]


def test_chunked_attention_is_a_window_marked_as_chunked() -> None:
    shapes = dict.fromkeys(range(2), SHAPE)
    made = plan(group(None, 2), KVGroup(100, shapes, is_chunked=True), max_running_requests=2, max_batched_tokens=60)
    assert made.num_blocks == [2 * 1024 // BLOCK_SIZE, 2 * 11]
    assert [each.is_chunked for each in made.block_groups] == [False, True]


def test_memory_saved_by_a_window_goes_to_the_other_layers() -> None:
    budget = 4 * 64 * 20_000
    whole = plan(group(None, 4), longest=10_000, max_running_requests=4, kv_cache_memory=str(budget))
    half = plan(
        group(None, 2),
        group(64, 2),
        longest=10_000,
        max_running_requests=4,
        max_batched_tokens=64,
        kv_cache_memory=str(budget),
    )
    assert half.nbytes <= budget
    assert half.num_tokens > 1.8 * whole.num_tokens


def test_a_model_with_windows_alone_gets_only_their_blocks() -> None:
    made = plan(group(64, 2), longest=100_000, max_running_requests=2, max_batched_tokens=64)
    assert made.num_blocks == [2 * 9]
    assert made.max_model_len == 100_000


def test_a_cache_too_small_for_the_context_limits_it_with_a_note() -> None:
    made = plan(group(None, 4), kv_cache_memory=str(256 * 500))
    assert made.max_model_len == 496
    assert "limited to 496 tokens" in made.notes[0]


@pytest.mark.parametrize("state_rows", [1, 2])
def test_states_of_all_running_requests_come_before_blocks(state_rows: int) -> None:
    made = plan_kv_cache(
        ServeSettings(max_running_requests=4),
        [group(None, 4)],
        1024,
        free_bytes=1 << 40,
        state_bytes=1000,
        state_rows=state_rows,
    )
    assert (made.num_slots, made.num_tokens) == (4, 4 * 1024)
    assert made.nbytes == 4 * 1024 * 256 + (4 * state_rows + 4) * 1000  # as many snapshots are kept


def test_states_get_half_of_a_small_budget_and_fewer_requests_run() -> None:
    settings = ServeSettings(kv_cache_memory=str(2 * 256 * 2048))
    made = plan_kv_cache(settings, [group(None, 4)], 1024, free_bytes=1 << 40, state_bytes=256 * 200)
    assert (made.num_slots, made.nbytes <= 2 * 256 * 2048) == (5, True)
    assert made.num_tokens >= 2048
    assert "running requests limited to 5" in made.notes[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_model_len": 2048}, "--max-model-len 2048: the model's context is 1024 tokens"),
        ({"max_model_len": 1000, "kv_cache_memory": "100KB"}, "--kv-cache-memory 100KB: 1000 tokens need 252"),
        ({"kv_cache_memory": "1KB"}, "--kv-cache-memory 1KB: 1024 tokens need 256"),
    ],
)
def test_impossible_limits_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        plan(group(None, 4), **settings)
