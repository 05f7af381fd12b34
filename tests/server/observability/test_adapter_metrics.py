"""Metrics of adapters."""

from __future__ import annotations

import re
from pathlib import Path

from expert_store import ExpertStore
from server.engine.engine_statistics import EngineStatistics
from server.observability.metrics import Metrics
from tests.expert_store.files import make_catalog
from tests.made_up_memory import made_up_memory
from tests.server.observability.test_metrics import samples
from tests.server.weights.adapter_rig import Rig


def test_requests_and_residency_of_registered_adapters_are_shown(tmp_path: Path) -> None:
    catalog = make_catalog(tmp_path)
    store, rig = ExpertStore(catalog, catalog.total_bytes), Rig(tmp_path)
    metrics = Metrics("made-up", store, EngineStatistics(), made_up_memory(), adapters=rig.registry)
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


def test_hidden_names_are_the_same_hashes_at_each_scrape_and_others_in_another_process(tmp_path: Path) -> None:
    catalog = make_catalog(tmp_path)
    store, rig = ExpertStore(catalog, catalog.total_bytes), Rig(tmp_path)
    refusals = [(("tenants", "model"), 1)]

    def scrape(*, hides_names: bool, metrics: Metrics | None = None) -> list[str]:
        metrics = metrics or Metrics("made-up", store, EngineStatistics(), made_up_memory(), adapters=rig.registry)
        metrics.policy_refusals = lambda: refusals
        return re.findall(r'(?:adapter|variant|policy)="([^"]*)"', metrics.render(hides_names=hides_names).decode())

    for name in ("law", "code"):
        rig.load(name)
    metrics = Metrics("made-up", store, EngineStatistics(), made_up_memory(), adapters=rig.registry)
    shown, hidden = (scrape(hides_names=hides, metrics=metrics) for hides in (False, True))
    assert set(shown) == {"law", "code", "tenants"}
    assert len(set(hidden)) == 3
    assert not set(hidden) & set(shown)
    assert scrape(hides_names=True, metrics=metrics) == hidden
    assert not set(scrape(hides_names=True)) & set(hidden)
    rig.memory.close()
    store.close()
