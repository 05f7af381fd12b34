"""What is scraped is what happened in the store."""

from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from expert_store import ExpertStore
from server.observability.metrics import Metrics
from server.observability.statistics import EngineStatistics
from tests.expert_store.files import make_catalog


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[str]], float]:
    """Samples by name and label values."""
    families = text_string_to_metric_families(metrics.render().decode())
    return {(s.name, frozenset(s.labels.values())): s.value for family in families for s in family.samples}


def value(metrics: Metrics, name: str, *labels: str) -> float:
    return samples(metrics)[f"greenroom_{name}", frozenset(labels)]


def test_known_leases_are_counted_end_to_end(tmp_path: Path) -> None:
    catalog = make_catalog(tmp_path)
    store = ExpertStore(catalog, 4 * catalog.layout(0).slot_bytes)
    metrics = Metrics(store, EngineStatistics())
    for rows, phase in (({0: 3, 1: 1}, "prefill"), ({0: 1, 2: 1}, "decode"), ({3: 1, 4: 1}, "decode")):
        with store.lease(1, rows, phase) as lease:  # type: ignore[arg-type]
            for _ in lease:
                pass
    store.close()
    assert value(metrics, "expert_lookups_total", "disk", "prefill") == 2
    assert value(metrics, "expert_lookups_total", "disk", "decode") == 3
    assert value(metrics, "expert_lookups_total", "host", "decode") == 1
    assert value(metrics, "expert_lookups_total", "host", "prefill") == 0
    assert value(metrics, "expert_tokens_total", "1", "0") == 4
    assert value(metrics, "expert_tokens_total", "0", "7") == 0
    assert value(metrics, "expert_evictions_total", "host") == 1
    assert value(metrics, "expert_loaded_bytes_total", "disk", "host") == 5 * 192
    assert value(metrics, "expert_load_seconds_count", "disk", "host") == 5
    assert value(metrics, "expert_load_seconds_bucket", "disk", "host", "+Inf") == 5
    assert value(metrics, "expert_stall_seconds_total", "decode") > 0
    assert value(metrics, "expert_slots", "host") == value(metrics, "expert_resident", "host") == 4
    assert value(metrics, "expert_resident_bytes", "host") == value(metrics, "expert_budget_bytes", "host")


def test_the_engine_is_shown_as_it_is_now(tmp_path: Path) -> None:
    catalog = make_catalog(tmp_path)
    store = ExpertStore(catalog, catalog.total_bytes)
    engine = EngineStatistics()
    metrics = Metrics(store, engine)
    engine.num_running, engine.num_waiting, engine.kv_cache_usage = 3, 2, 0.5
    engine.finished["stop"] += 4
    store.close()
    assert value(metrics, "num_requests_running") == 3
    assert value(metrics, "num_requests_waiting") == 2
    assert value(metrics, "kv_cache_usage_perc") == 0.5
    assert value(metrics, "request_success_total", "stop") == 4
    assert value(metrics, "request_success_total", "error") == 0
