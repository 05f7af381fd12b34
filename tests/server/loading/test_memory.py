"""`serve`, `inspect` and `doctor` refuse the same budgets with the same sentence."""

from __future__ import annotations

import pytest
import torch

from server.doctor import model as doctor
from server.doctor.finding import Finding
from server.doctor.model import check_model
from server.inspection.memory_fit import fit_memory
from server.inspection.model_summary import summarise_model
from server.loading import memory
from server.loading.load_model import load_model
from server.loading.memory import plan_beside_trunk
from server.settings import ServeSettings, SettingsError

CPU = torch.device("cpu")
BUDGETS = [
    ({"memory": "200MiB"}, "the model does not fit: its trunk needs"),
    ({"memory": "330MiB"}, "the server needs 337"),
    ({"memory": "342MiB", "host_expert_memory": "30GiB"}, "--host-expert-memory 30GiB is 20.2 MiB beside"),
    ({"memory": "342MiB", "device_expert_memory": "100%"}, "--device-expert-memory 100% is 20.2 MiB beside"),
    ({"memory": "500MiB", "kv_cache_memory": "400MiB"}, "the experts of a token need"),
    ({"memory": "1GiB", "kv_cache_memory": "1KiB"}, "--kv-cache-memory 1KiB: 2048 tokens need"),
    ({"memory": "1GiB", "max_model_len": 100_000}, "--max-model-len 100000: the model's context is 2048 tokens"),
    ({"memory": "345MiB"}, None),
    ({"memory": "1GiB", "host_expert_memory": "1%", "device_expert_memory": "2MiB"}, None),
]


@pytest.fixture(autouse=True)
def small_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process as small as a server's, and do not measure the disk."""
    monkeypatch.setattr(memory, "own_bytes", lambda: 200 << 20)
    monkeypatch.setattr(memory, "wait_for_counters", lambda: None)
    monkeypatch.setattr(doctor, "check_disk", lambda *_: Finding("disk", "ok", ""))


def refusal_of_serve(settings: ServeSettings) -> str | None:
    try:
        plan_beside_trunk(load_model(None, settings).trunk, settings, CPU)
    except SettingsError as error:
        return str(error)
    return None


def refusal_of_doctor(settings: ServeSettings) -> str | None:
    *_, plan = check_model(None, settings)
    return "; ".join(filter(None, (plan.message, plan.advice))) if plan.level == "fail" else None


@pytest.mark.slow
@pytest.mark.parametrize(("budgets", "reason"), BUDGETS, ids=lambda value: str(value)[:60])
def test_all_three_refuse_the_same(budgets: dict[str, str | int], reason: str | None) -> None:
    settings = ServeSettings.model_validate({"dtype": "bfloat16", **budgets})
    refusal = fit_memory(summarise_model(None, settings, CPU), settings, CPU).refusal
    assert refusal == refusal_of_serve(settings) == refusal_of_doctor(settings)
    assert refusal is None if reason is None else str(refusal).startswith(reason)


def test_a_process_larger_than_assumed_is_refused_by_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "own_bytes", lambda: 900 << 20)
    settings = ServeSettings.model_validate({"dtype": "bfloat16", "memory": "900MiB"})
    assert str(refusal_of_serve(settings)).startswith("the server needs ")
