"""Division of the budget among process, trunk, step, experts and KV cache."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expert_store import ExpertCatalog
from expert_store.catalog import Extent, PackedRecord
from server.memory.fit_checks import check_plan
from server.memory.plan import ModelNeeds, least_budget, plan_memory
from server.setting_values import parse_budget
from server.settings import ServeSettings, SettingsError
from tests.remote_folder import RemoteSource
from tests.server.memory.models import make_needs

CPU = torch.device("cpu")
MIB = 1 << 20
PROCESS = 200 * MIB
ELSEWHERE = RemoteSource("http://models.example.com/model.safetensors")


@pytest.fixture(scope="module")
def needs(tmp_path_factory: pytest.TempPathFactory) -> ModelNeeds:
    return make_needs(tmp_path_factory.mktemp("experts"))


@pytest.fixture(scope="module")
def needs_of_many(tmp_path_factory: pytest.TempPathFactory) -> ModelNeeds:
    return make_needs(tmp_path_factory.mktemp("many"), num_experts=1024)  # 8 MiB


@pytest.mark.slow
@given(
    spare=st.integers(0, 1 << 32),
    tokens=st.integers(1, 4096),
    running=st.integers(1, 64),
    state_bytes=st.integers(0, 64 * MIB),
    adapter_memory=st.sampled_from(["auto", "64MiB"]),
    serves_adapters=st.booleans(),
)
def test_every_sufficient_budget_holds_all_parts(
    needs: ModelNeeds,
    spare: int,
    tokens: int,
    running: int,
    state_bytes: int,
    adapter_memory: str,
    serves_adapters: bool,
) -> None:
    needs = replace(needs, state_bytes=state_bytes)
    settings = ServeSettings(
        max_batched_tokens=tokens,
        max_running_requests=running,
        adapter_memory=adapter_memory,
        adapters_dir="adapters" if serves_adapters else None,
    )
    least = least_budget(settings, needs, CPU, PROCESS)
    plan = plan_memory(settings, needs, CPU, least + spare, PROCESS)
    check_plan(settings, plan)
    at_start = plan.fixed_bytes + plan.first_step_bytes + plan.kv.first_bytes + plan.host_bytes
    with_all_kv = plan.fixed_bytes + plan.step_bytes + plan.kv.nbytes + plan.least_host_bytes
    assert max(at_start, with_all_kv) <= plan.budget_bytes
    assert plan.kv.first_bytes <= plan.kv.nbytes
    assert plan.host_bytes == min(needs.catalog.total_bytes, plan.budget_bytes - (at_start - plan.host_bytes))


@pytest.mark.parametrize(
    ("settings", "expected_mib"),
    [
        ({}, 0),
        ({"adapter_memory": "100MiB"}, 0),
        ({"adapters_dir": "adapters"}, 250),  # 1/16
        ({"adapter": ["law=adapters/law"]}, 250),
        ({"adapters_dir": "adapters", "adapter_memory": "100MiB"}, 100),
    ],
)
def test_adapters_have_memory_where_they_can_be_loaded(
    needs: ModelNeeds, settings: dict[str, Any], expected_mib: int
) -> None:
    plan = plan_memory(ServeSettings(**settings), needs, CPU, 4000 * MIB, PROCESS)
    assert plan.adapter_bytes == expected_mib * MIB


def test_a_model_elsewhere_leaves_room_for_bytes_on_their_way_to_the_disk(needs: ModelNeeds) -> None:
    layers = {
        index: replace(entry, experts=(PackedRecord(Extent(ELSEWHERE, 0, entry.layout.slot_bytes), 0),) * 256)
        for index, entry in needs.catalog.layers.items()
    }
    elsewhere = replace(needs, catalog=ExpertCatalog(layers))
    least = least_budget(ServeSettings(), needs, CPU, PROCESS)
    plan = plan_memory(ServeSettings(), needs, CPU, least, PROCESS)
    with pytest.raises(SettingsError, match=r"76\.0 MiB to read experts"):
        plan_memory(ServeSettings(), elsewhere, CPU, least, PROCESS)
    assert plan_memory(ServeSettings(), elsewhere, CPU, least + 76 * MIB, PROCESS).kv == plan.kv


def test_more_memory_for_adapters_than_there_is_is_refused(needs: ModelNeeds) -> None:
    settings = ServeSettings(adapters_dir="adapters", adapter_memory="4GiB")
    with pytest.raises(SettingsError, match=r"4\.0 GiB for adapters"):
        plan_memory(settings, needs, CPU, 4000 * MIB, PROCESS)


def test_too_small_a_budget_is_refused_with_a_sufficient_one(needs: ModelNeeds) -> None:
    settings = ServeSettings(memory="100MiB")
    with pytest.raises(SettingsError, match=r"--memory 100MiB is 100\.0 MiB; set --memory to \S+ or more") as refused:
        plan_memory(settings, needs, CPU, 100 * MIB, PROCESS)
    advised = re.search(r"set --memory to (\S+) or more", str(refused.value))
    assert advised is not None
    plan_memory(settings, needs, CPU, parse_budget(advised.group(1)).resolve(0, 0), PROCESS)


def test_one_long_prompt_may_use_all_memory_but_the_minimum_of_experts(tmp_path: Path) -> None:
    needs = make_needs(tmp_path, longest=16_384)  # 8 MiB
    settings = ServeSettings(max_running_requests=1)
    least = least_budget(settings, needs, CPU, PROCESS)
    assert plan_memory(settings, needs, CPU, least + 9 * MIB, PROCESS).kv.max_model_len == 16_384


def test_a_kv_cache_budget_is_used_and_experts_get_the_rest(needs: ModelNeeds) -> None:
    budget = 1000 * MIB
    plan = plan_memory(ServeSettings(kv_cache_memory="40MiB"), needs, CPU, budget, PROCESS)
    assert plan.kv.nbytes <= 40 * MIB < plan.kv.nbytes + plan.kv.extent_bytes
    free = plan_memory(ServeSettings(), needs, CPU, budget, PROCESS)
    assert free.kv.nbytes > plan.kv.nbytes


@pytest.mark.slow
def test_an_expert_budget_that_does_not_fit_is_refused_with_one_that_does(needs_of_many: ModelNeeds) -> None:
    settings = ServeSettings(host_expert_memory="100%")
    budget = least_budget(settings, needs_of_many, CPU, PROCESS) + 3 * MIB
    with pytest.raises(SettingsError, match=r"set --host-expert-memory to \dMiB at most, or to auto"):
        check_plan(settings, plan_memory(settings, needs_of_many, CPU, budget, PROCESS))


@pytest.mark.parametrize("tier", ["host", "device"])
def test_a_fixed_budget_of_experts_has_room_for_variants_where_these_may_be_loaded(
    tier: str, needs: ModelNeeds, tmp_path: Path
) -> None:
    total = needs.catalog.total_bytes
    for folder, expected in ((None, total), (tmp_path, 64 * MIB)):
        settings = ServeSettings.model_validate({f"{tier}_expert_memory": "64MiB", "experts_dir": folder})
        plan = plan_memory(settings, needs, CPU, 1000 * MIB, PROCESS)
        assert getattr(plan, f"{tier}_bytes") == expected


@pytest.mark.slow
def test_a_device_tier_in_host_memory_that_does_not_fit_is_refused_with_one_that_does(
    needs_of_many: ModelNeeds,
) -> None:
    settings = ServeSettings(device_expert_memory="100%")
    budget = least_budget(settings, needs_of_many, CPU, PROCESS) + 3 * MIB
    with pytest.raises(SettingsError, match=r"set --device-expert-memory to \dMiB at most, or to auto"):
        check_plan(settings, plan_memory(settings, needs_of_many, CPU, budget, PROCESS))


def test_a_trunk_on_the_device_is_not_counted_a_second_time(needs: ModelNeeds, monkeypatch: pytest.MonkeyPatch) -> None:
    total, cuda = 8 << 30, torch.device("cuda", 0)
    large = replace(needs, trunk_bytes=3 << 30)

    def free_on_device(taken: int, needs: ModelNeeds) -> int:
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (total - taken, total))
        return plan_memory(ServeSettings(), needs, cuda, 1 << 33, PROCESS).free.device

    before = free_on_device(0, large)
    assert free_on_device(large.trunk_bytes, replace(large, is_loaded=True)) == before


def test_a_gpu_keeps_room_for_graphs(needs: ModelNeeds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (40 << 30, 80 << 30))
    plan, without = (
        plan_memory(ServeSettings(deterministic=is_deterministic), needs, torch.device("cuda", 0), 4 << 30, PROCESS)
        for is_deterministic in (False, True)
    )
    assert plan.graph_bytes > 0
    assert without.free.device - plan.free.device == plan.graph_bytes
