"""Steps of a GPU that pages experts are large, as far as its memory allows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from expert_store import ExpertCatalog, ExpertLayout, Extent, FileSource, LayerEntry, PackedRecord, ParameterSpec
from server.memory.fit_checks import check_plan
from server.memory.plan import MemoryPlan, ModelNeeds, plan_memory
from server.settings import ServeSettings
from tests.server.memory.models import STEP, make_needs

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
GIB = 1 << 30
LAYOUT = ExpertLayout((ParameterSpec("weight", torch.uint8, (16 << 20,)),))


@pytest.fixture
def needs(tmp_path: Path) -> ModelNeeds:
    """Return a model with 48 GiB of experts in 48 layers, and about 0.4 MiB for each token of a step."""
    record = PackedRecord(Extent(FileSource(tmp_path / "experts"), 0, LAYOUT.slot_bytes), 0)
    catalog = ExpertCatalog({layer: LayerEntry(LAYOUT, (record,) * 64) for layer in range(48)})
    step = replace(STEP, hidden=2048, expert=768, top_k=8, has_native=False, has_modules=True)
    return replace(make_needs(tmp_path), catalog=catalog, step=step)


def plan(
    needs: ModelNeeds, monkeypatch: pytest.MonkeyPatch, free: int, device: torch.device = CUDA, **settings: Any
) -> MemoryPlan:
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (free, free))
    given = ServeSettings(**settings)
    made = plan_memory(given, needs, device, 64 * GIB, GIB)
    check_plan(given, made)
    return made


@pytest.mark.parametrize(
    ("free_gib", "num_tokens"),
    [
        pytest.param(40, 8192, id="much memory"),
        pytest.param(16, 5120, id="activations of at most an eighth"),
        pytest.param(8, 512, id="too little memory"),
        pytest.param(80, 512, id="all experts fit"),
    ],
)
def test_steps_are_as_large_as_memory_allows_where_experts_are_paged(
    needs: ModelNeeds, monkeypatch: pytest.MonkeyPatch, free_gib: int, num_tokens: int
) -> None:
    assert plan(needs, monkeypatch, free_gib * GIB).batched_tokens == num_tokens


def test_memory_for_a_large_step_is_left_on_the_device(needs: ModelNeeds, monkeypatch: pytest.MonkeyPatch) -> None:
    large = plan(needs, monkeypatch, 40 * GIB)
    small = plan(needs, monkeypatch, 40 * GIB, max_batched_tokens=512)
    assert small.free.device - large.free.device == large.step_bytes - GIB // 2
    assert large.device_bytes >= 7 / 8 * small.device_bytes


@pytest.mark.parametrize("settings", [{"max_batched_tokens": 700}, {"max_batched_tokens": 512}])
def test_the_flag_decides_if_it_is_given(
    needs: ModelNeeds, monkeypatch: pytest.MonkeyPatch, settings: dict[str, int]
) -> None:
    assert plan(needs, monkeypatch, 40 * GIB, **settings).batched_tokens == settings["max_batched_tokens"]


def test_steps_of_a_processor_are_small(needs: ModelNeeds, monkeypatch: pytest.MonkeyPatch) -> None:
    assert plan(needs, monkeypatch, 40 * GIB, CPU).batched_tokens == 512


@pytest.mark.parametrize("budget", ["20GiB", "1GiB"])
def test_a_budget_of_experts_stays_what_the_user_set(
    needs: ModelNeeds, monkeypatch: pytest.MonkeyPatch, budget: str
) -> None:
    """Experts of 1 GiB are less than two layers, so none are copied ahead and large steps gain less."""
    made = plan(needs, monkeypatch, 40 * GIB, device_expert_memory=budget)
    assert made.device_bytes == int(budget.removesuffix("GiB")) * GIB
    assert made.batched_tokens == (8192 if budget == "20GiB" else 512)
