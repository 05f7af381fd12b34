"""Budgets that do not fit are refused with the flag to change and a value that fits."""

from __future__ import annotations

import re

import pytest
import torch

from expert_store import ExpertCatalog, least_bytes, read_index
from server.byte_sizes import as_flag
from server.memory.expert_plan import DEVICE_RESERVE_BYTES, ExpertBudgets, FreeMemory, plan_experts
from server.memory.fit_checks import check_budgets, check_trunk
from server.memory.plan import PROCESS_BYTES
from server.model.checkpoint.locate import BUNDLED
from server.model.checkpoint.read_config import read_config
from server.model.checkpoint.tensor_map import map_checkpoint
from server.model.model_building import build_model
from server.setting_values import parse_budget
from server.settings import ServeSettings, SettingsError

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
TOP_K = 2


@pytest.fixture(scope="module")
def catalog() -> ExpertCatalog:
    """A catalog of 96 experts in 20 MiB."""
    model = build_model(read_config(BUNDLED), torch.bfloat16)
    return map_checkpoint(model, read_index([BUNDLED / "model.safetensors"])).catalog


def fit(catalog: ExpertCatalog, free: FreeMemory, kv_bytes: int = 0, **settings: str) -> None:
    """Plan as serving does, and check the plan."""
    asked = ServeSettings.model_validate(settings)
    budgets = plan_experts(asked, catalog, TOP_K, free, kv_bytes)
    check_budgets(
        asked, catalog, TOP_K, free=free, kv_bytes=kv_bytes, host_bytes=budgets.host, device_bytes=budgets.device
    )


def advised(message: str) -> str:
    match = re.search(r"([\d.]+[GM]iB) at most", message)
    assert match is not None, message
    return match.group(1)


def test_automatic_budgets_fit_if_the_minimum_does(catalog: ExpertCatalog) -> None:
    least = least_bytes(catalog, TOP_K)
    for host in (least, least + 1000, catalog.total_bytes, 1 << 40):
        fit(catalog, FreeMemory(host, host, has_gpu=False))


def test_the_advised_budget_fits(catalog: ExpertCatalog) -> None:
    free = FreeMemory(10 << 20, 10 << 20, has_gpu=False)
    with pytest.raises(
        SettingsError, match=r"--host-expert-memory 90% is 18\.2 MiB beside 1\.0 MiB of KV cache, but only"
    ) as bad:
        fit(catalog, free, 1 << 20, host_expert_memory="90%")
    fit(catalog, free, 1 << 20, host_expert_memory=advised(str(bad.value)))


def test_a_budget_larger_than_all_experts_is_cut(catalog: ExpertCatalog) -> None:
    free = FreeMemory(30 << 20, 30 << 20, has_gpu=False)
    fit(catalog, free, host_expert_memory="1000GiB")
    asked = ServeSettings.model_validate({"host_expert_memory": "1000GiB", "device_expert_memory": "1000GiB"})
    assert plan_experts(asked, catalog, TOP_K, free, 0) == ExpertBudgets(catalog.total_bytes, catalog.total_bytes)


def test_a_kv_cache_that_leaves_no_memory_for_experts_is_refused(catalog: ExpertCatalog) -> None:
    free = FreeMemory(10 << 20, 10 << 20, has_gpu=False)
    with pytest.raises(SettingsError, match=r"set --kv-cache-memory to .*MiB at most, or lower --max-model-len") as bad:
        fit(catalog, free, 20 << 20)
    fit(catalog, free, parse_budget(advised(str(bad.value))).resolve(0, 0))


def test_host_and_device_memory_are_checked_on_cuda(catalog: ExpertCatalog) -> None:
    with pytest.raises(SettingsError, match="set --device-expert-memory to 9MiB at most, or to auto"):
        fit(catalog, FreeMemory(1 << 40, 10 << 20, has_gpu=True), 1 << 20, device_expert_memory="100%")
    with pytest.raises(SettingsError, match="set --host-expert-memory to 10MiB at most, or to auto"):
        fit(catalog, FreeMemory(10 << 20, 1 << 40, has_gpu=True), 1 << 20, host_expert_memory="100%")


def test_experts_of_a_token_that_fit_nowhere_are_refused(catalog: ExpertCatalog) -> None:
    with pytest.raises(SettingsError, match=r"need 432\.0 KiB, but only 400\.0 KiB are available beside"):
        fit(catalog, FreeMemory(400 << 10, 400 << 10, has_gpu=False))


@pytest.mark.parametrize(
    ("dtype", "device", "advice"),
    [
        (torch.float32, CPU, "30.0 GiB in float32 .* try --dtype bfloat16"),
        (torch.bfloat16, CPU, "use a machine with 30.* GiB .* shrink the trunk with `greenroom pack --trunk int8`, or"),
        (torch.bfloat16, CUDA, "only 10.0 GiB are available; try --device cpu"),
    ],
)
def test_a_trunk_that_does_not_fit_is_refused_before_it_is_read(
    catalog: ExpertCatalog, dtype: torch.dtype, device: torch.device, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: ((10 << 30) + DEVICE_RESERVE_BYTES, 80 << 30))
    settings, budget = ServeSettings(), (20 << 30) + PROCESS_BYTES
    check_trunk(settings, 1 << 30, catalog, dtype=dtype, device=device, budget_bytes=budget)
    with pytest.raises(SettingsError, match=advice):
        check_trunk(settings, 30 << 30, catalog, dtype=dtype, device=device, budget_bytes=budget)


@pytest.mark.parametrize(("memory", "told"), [("200GiB", "less than --memory 200GiB"), ("19GiB", "19GiB is 19.0 GiB")])
def test_no_budget_beyond_the_machine_is_advised(
    catalog: ExpertCatalog, monkeypatch: pytest.MonkeyPatch, memory: str, told: str
) -> None:
    monkeypatch.setattr("server.memory.advice.total_bytes", lambda: 20 << 30)
    settings, budget = ServeSettings(memory=memory), 19 << 30
    with pytest.raises(SettingsError, match=f"{told}.*use a machine with 30.* GiB") as refused:
        check_trunk(settings, 30 << 30, catalog, dtype=torch.bfloat16, device=CPU, budget_bytes=budget)
    assert "set --memory" not in str(refused.value)


def test_experts_that_do_not_fit_beside_a_trunk_that_does_are_to_shrink(
    catalog: ExpertCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.memory.fit_checks.GROWTH_BYTES", 0)  # more than these small experts need
    budget = PROCESS_BYTES + (1 << 30) + least_bytes(catalog, 1) // 2
    with pytest.raises(SettingsError, match="shrink the experts with `greenroom pack --weights int4`"):
        check_trunk(ServeSettings(), 1 << 30, catalog, dtype=torch.bfloat16, device=CPU, budget_bytes=budget)


def test_a_sufficient_budget_holds_what_reading_experts_takes(
    catalog: ExpertCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def advised() -> int:
        settings = ServeSettings(memory="100MiB")
        with pytest.raises(SettingsError, match="does not fit") as caught:
            check_trunk(settings, 1 << 30, catalog, dtype=torch.bfloat16, device=CPU, budget_bytes=100 << 20)
        return int(re.findall(r"set --memory to (\d+)MiB", str(caught.value))[0])

    before = advised()
    monkeypatch.setattr("server.memory.fit_checks.reading_memory_bytes", lambda _: 64 << 20)
    assert advised() == before + 64


@pytest.mark.parametrize(
    ("nbytes", "text"), [(1 << 20, "1MiB"), ((9 << 30) + 1, "9216MiB"), (int(20.19 * (1 << 30)), "20.1GiB")]
)
def test_sizes_are_rounded_down_for_flags(nbytes: int, text: str) -> None:
    assert as_flag(nbytes) == text
    assert parse_budget(text).resolve(0, 0) <= nbytes
