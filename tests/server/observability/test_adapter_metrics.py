"""Metrics of adapters."""

from __future__ import annotations

import re
from pathlib import Path

from expert_store import ExpertStore
from server.engine.engine_statistics import EngineStatistics
from server.engine.interface import ExpertUsage, Timeline
from server.observability.metrics import Metrics
from tests.expert_store.files import make_catalog
from tests.made_up_memory import made_up_memory
from tests.server.observability.test_metrics import samples
from tests.server.weights.adapter_rig import Rig


def test_requests_and_residency_of_registered_adapters_are_shown(tmp_path: Path) -> None:
    catalog = make_catalog(tmp_path)
    store, rig = ExpertStore(catalog, catalog.total_bytes), Rig(tmp_path)
    metrics = Metrics("made-up", store, EngineStatistics(), memory=made_up_memory(), adapters=rig.registry)
    for name in ("law", "code", "gone"):
        rig.load(name)
    for _ in range(2):
        rig.wait_until_resident(rig.begin("law"))
    rig.registry.unload("gone")
    names = ("greenroom_adapter_requests_total", "greenroom_adapter_resident")
    shown = {key: value for key, value in samples(metrics).items() if key[0] in names}
    assert shown == {
        ("greenroom_adapter_requests_total", frozenset({"law"})): 2,
        ("greenroom_adapter_requests_total", frozenset({"code"})): 0,
        ("greenroom_adapter_resident", frozenset({"law", "host"})): 1,
        ("greenroom_adapter_resident", frozenset({"code", "host"})): 0,
    }
    rig.memory.close()
    store.close()


def test_costs_of_requests_are_shown_by_adapter_from_zero_on(tmp_path: Path) -> None:
    catalog = make_catalog(tmp_path)
    store, rig = ExpertStore(catalog, catalog.total_bytes), Rig(tmp_path)
    metrics = Metrics("made-up", store, EngineStatistics(), memory=made_up_memory(), adapters=rig.registry)
    for name in ("law", "idle", "gone"):
        rig.load(name)
    for name in ("law", "gone"):
        weights = rig.begin(name)
        weights.note_request(ExpertUsage(10, 3, 4096, 0.5), Timeline(1.0, 1.1, 1.2, 2.2, 2.5), 11)
        weights.end()
    late = rig.begin("gone")
    rig.registry.unload("gone")
    late.note_request(ExpertUsage(10, 3, 4096, 0.5), Timeline(1.0), 0)
    late.end()
    shown = samples(metrics)
    law = frozenset({"law"})
    assert [shown[f"greenroom_adapter_expert_{name}_total", law] for name in ("lookups", "misses")] == [10, 3]
    assert shown["greenroom_adapter_expert_stall_seconds_total", law] == 0.5
    for name in ("time_to_first_token", "time_per_output_token", "e2e_request_latency"):
        assert shown[f"greenroom_adapter_{name}_seconds_count", law] == 1
    assert shown["greenroom_adapter_e2e_request_latency_seconds_sum", law] == 1.5
    misses = {
        labels: value for (name, labels), value in shown.items() if name == "greenroom_adapter_expert_misses_total"
    }
    assert misses == {law: 3, frozenset({"idle"}): 0}
    rig.memory.close()
    store.close()


def test_hidden_names_are_the_same_hashes_at_each_scrape_and_others_in_another_process(tmp_path: Path) -> None:
    catalog = make_catalog(tmp_path)
    store, rig = ExpertStore(catalog, catalog.total_bytes), Rig(tmp_path)
    refusals = [(("tenants", "model"), 1)]

    def scrape(*, hides_names: bool, metrics: Metrics | None = None) -> list[str]:
        metrics = metrics or Metrics(
            "made-up", store, EngineStatistics(), memory=made_up_memory(), adapters=rig.registry
        )
        metrics.access_refusals = lambda: refusals
        return re.findall(r'(?:adapter|variant|policy)="([^"]*)"', metrics.render(hides_names=hides_names).decode())

    for name in ("law", "code"):
        rig.load(name)
    metrics = Metrics("made-up", store, EngineStatistics(), memory=made_up_memory(), adapters=rig.registry)
    shown, hidden = (scrape(hides_names=hides, metrics=metrics) for hides in (False, True))
    assert set(shown) == {"law", "code", "tenants"}
    assert len(set(hidden)) == 3
    assert not set(hidden) & set(shown)
    assert scrape(hides_names=True, metrics=metrics) == hidden
    assert not set(scrape(hides_names=True)) & set(hidden)
    rig.memory.close()
    store.close()
