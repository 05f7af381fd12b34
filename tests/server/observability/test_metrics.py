"""Metrics of store and engine in Prometheus' format."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from expert_store import ExpertKey, ExpertLoadError, ExpertStore, FileSource
from expert_store.disk_cache.cached_source import CachedSource
from expert_store.disk_cache.disk_cache import DiskCache
from expert_store.load_balance import TOKENS_PER_EXPERT
from server.engine.engine_statistics import EngineStatistics
from server.observability.expert_tokens import ExpertTokens
from server.observability.metrics import Metrics
from tests.expert_store.files import make_catalog
from tests.expert_store.lease_rows import one_row_each
from tests.expert_store.records import make_records
from tests.made_up_memory import made_up_memory


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[str]], float]:
    """Return samples by name and label values."""
    families = text_string_to_metric_families(metrics.render().decode())
    return {(s.name, frozenset(s.labels.values())): s.value for family in families for s in family.samples}


def value(metrics: Metrics, name: str, *labels: str) -> float:
    return samples(metrics)[f"greenroom_{name}", frozenset(labels)]


def test_leases_are_counted_end_to_end(tmp_path: Path) -> None:
    catalog = make_catalog(tmp_path)
    store = ExpertStore(catalog, 4 * catalog.layout(0).slot_bytes)
    metrics = Metrics("made-up", store, EngineStatistics(), memory=made_up_memory())
    for rows, phase in (({0: 3, 1: 1}, "prefill"), ({0: 1, 2: 1}, "decode"), ({3: 1, 4: 1}, "decode")):
        asked = {ExpertKey(1, expert): count for expert, count in rows.items()}
        with store.lease(asked, phase) as lease:  # type: ignore[arg-type]
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


def test_load_balance_of_layers_is_a_gauge_by_statistic(tmp_path: Path) -> None:
    catalog = make_catalog(tmp_path)
    store = ExpertStore(catalog, catalog.total_bytes)
    metrics = Metrics("made-up", store, EngineStatistics(), memory=made_up_memory())
    assert not [name for name, _ in samples(metrics) if name == "greenroom_expert_load_balance"]
    for layer, entry in catalog.layers.items():
        keys = [ExpertKey(layer, expert) for expert in range(len(entry.experts))]
        with store.lease(dict.fromkeys(keys[1:], 2 * TOKENS_PER_EXPERT)) as lease:
            for _ in lease:
                pass
    store.close()
    for layer, entry in catalog.layers.items():
        assert value(metrics, "expert_load_balance", str(layer), "dead") == 1
        size = len(entry.experts)
        assert value(metrics, "expert_load_balance", str(layer), "max_over_mean") == pytest.approx(size / (size - 1))


def test_tiers_pins_prefetches_and_hit_ratios_are_shown(tmp_path: Path) -> None:
    catalog = make_records(tmp_path)
    slot_bytes = catalog.layout(0).slot_bytes
    store = ExpertStore(catalog, 3 * slot_bytes, device_bytes=2 * slot_bytes)
    metrics = Metrics("made-up", store, EngineStatistics(), memory=made_up_memory())
    assert ("greenroom_expert_hit_ratio", frozenset()) not in samples(metrics)

    def use(*experts: int) -> None:
        with store.lease(one_row_each(0, experts)) as lease:
            for _ in lease:
                pass

    use(0)
    use(0)
    store.prefetch([ExpertKey(0, 1)])
    use(1)
    store.pin([ExpertKey(0, 0)])
    for expert in range(2, 6):
        use(expert)
    store.close()
    assert (
        value(metrics, "expert_lookups_total", "device", "decode")
        + value(metrics, "expert_lookups_total", "host", "decode")
        + value(metrics, "expert_lookups_total", "disk", "decode")
        == 7
    )
    assert value(metrics, "expert_loaded_bytes_total", "disk", "host") == 6 * slot_bytes
    text = metrics.render().decode()
    assert f'greenroom_expert_loaded_bytes_total{{source="host",target="device"}} {6.0 * slot_bytes}\n' in text
    assert 'greenroom_expert_load_seconds_count{source="host",target="device"} 6.0\n' in text
    assert value(metrics, "expert_pinned", "device") == 1
    assert value(metrics, "expert_slots", "device") == value(metrics, "expert_resident", "device") == 2
    outcomes = [value(metrics, "expert_prefetches_total", outcome) for outcome in ("used", "late", "wasted")]
    assert sum(outcomes) == 1
    assert 0 < value(metrics, "expert_hit_ratio") <= 2 / 7
    assert value(metrics, "expert_optimal_hit_ratio") >= 1 / 7


def test_damaged_experts_are_counted(tmp_path: Path) -> None:
    catalog = make_records(tmp_path)
    store = ExpertStore(catalog, catalog.total_bytes)
    metrics = Metrics("made-up", store, EngineStatistics(), memory=made_up_memory())
    (tmp_path / "layer0.pack").write_bytes(bytes(8 * catalog.layout(0).slot_bytes))
    with pytest.raises(ExpertLoadError), store.lease(one_row_each(0, [3])) as lease:
        next(iter(lease))
    store.close()
    assert value(metrics, "expert_quarantined") == 1
    assert value(metrics, "expert_load_failures_total", "host") == 1


def test_gauges_show_the_current_state_of_the_engine(tmp_path: Path) -> None:
    catalog = make_catalog(tmp_path)
    store = ExpertStore(catalog, catalog.total_bytes)
    engine = EngineStatistics()
    metrics = Metrics("made-up", store, engine, memory=made_up_memory())
    engine.num_running, engine.num_waiting, engine.kv_cache_usage = 3, 2, 0.5
    engine.finished["stop"] += 4
    engine.num_refused = 7
    engine.count_step("decode", 0.25)
    engine.count_step("decode", 0.5)
    store.close()
    assert value(metrics, "num_requests_running") == 3
    assert value(metrics, "num_requests_waiting") == 2
    assert value(metrics, "kv_cache_usage_perc") == 0.5
    assert value(metrics, "request_success_total", "stop") == 4
    assert value(metrics, "request_success_total", "error") == 0
    assert value(metrics, "requests_refused_total") == 7
    assert value(metrics, "engine_steps_total", "decode") == 2
    assert value(metrics, "engine_step_seconds_total", "decode") == 0.75
    assert value(metrics, "engine_steps_total", "prefill") == 0
    assert value(metrics, "engine_alive") == 0


def test_latencies_are_histograms(tmp_path: Path) -> None:
    catalog = make_catalog(tmp_path)
    store = ExpertStore(catalog, catalog.total_bytes)
    engine = EngineStatistics()
    metrics = Metrics("made-up", store, engine, memory=made_up_memory())
    for seconds in (0.004, 0.03, 3000.0):
        engine.latencies.first_token.observe(seconds)
    store.close()
    assert value(metrics, "time_to_first_token_seconds_bucket", "0.001") == 0
    assert value(metrics, "time_to_first_token_seconds_bucket", "0.005") == 1
    assert value(metrics, "time_to_first_token_seconds_bucket", "2560.0") == 2
    assert value(metrics, "time_to_first_token_seconds_bucket", "+Inf") == 3
    assert value(metrics, "time_to_first_token_seconds_count") == 3
    assert value(metrics, "time_to_first_token_seconds_sum") == pytest.approx(3000.034)
    assert value(metrics, "inter_token_latency_seconds_count") == 0


def test_model_info_has_model_and_version(tmp_path: Path) -> None:
    catalog = make_catalog(tmp_path)
    store = ExpertStore(catalog, catalog.total_bytes)
    metrics = Metrics('a "model"', store, EngineStatistics(), memory=made_up_memory())
    store.close()
    assert value(metrics, "model_info", 'a "model"', version("greenroom")) == 1


def test_memory_is_shown_by_part_with_its_adjustments(tmp_path: Path) -> None:
    store = ExpertStore(make_catalog(tmp_path), 1 << 20)
    memory = made_up_memory()
    memory.adjustments.counts["shrink", "others"] = 3
    metrics = Metrics("made-up", store, EngineStatistics(), memory=memory)
    store.close()
    assert value(metrics, "memory_bytes", "trunk") == 300
    assert value(metrics, "memory_bytes", "experts") == 2000
    assert value(metrics, "memory_budget_bytes") == 1 << 30
    assert value(metrics, "memory_adjustments_total", "shrink", "others") == 3


def test_failures_of_a_cache_on_a_disk_are_counted(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache")
    store = ExpertStore(make_catalog(tmp_path, wrap=lambda source: CachedSource(source, cache)), 1 << 20)
    metrics = Metrics("made-up", store, EngineStatistics(), memory=made_up_memory())
    assert value(metrics, "disk_cache_failures_total", "refused") == 0
    before = CachedSource(FileSource(tmp_path / "layer0.safetensors"), DiskCache(cache.folder)).open()
    assert before.file is not None
    before.file.path.unlink()
    before.file.path.symlink_to(tmp_path / "other")
    with store.lease(one_row_each(0, [0]), "decode") as lease:
        list(lease)
    store.close()
    assert value(metrics, "disk_cache_failures_total", "refused") == 1


def test_layers_of_fewer_experts_have_fewer_samples() -> None:
    tokens = np.array([[1, 2, 3], [4, 0, 0]])
    lines = ExpertTokens({1: 3, 5: 1}).render(tokens).decode().splitlines()
    assert lines[2:] == [
        'greenroom_expert_tokens_total{layer="1",expert="0"} 1',
        'greenroom_expert_tokens_total{layer="1",expert="1"} 2',
        'greenroom_expert_tokens_total{layer="1",expert="2"} 3',
        'greenroom_expert_tokens_total{layer="5",expert="0"} 4',
    ]


def test_tokens_are_shown_by_layer_alone_or_not_at_all_if_so_asked(tmp_path: Path) -> None:
    store = ExpertStore(make_catalog(tmp_path), 1 << 20)
    with store.lease({ExpertKey(1, 0): 3, ExpertKey(1, 2): 1}, "decode") as lease:
        list(lease)
    store.close()
    by_layer = Metrics("made-up", store, EngineStatistics(), memory=made_up_memory(), expert_metrics="layer")
    found = {place: each for place, each in samples(by_layer).items() if "expert_tokens" in place[0]}
    assert found == {("greenroom_expert_tokens_total", frozenset(layer)): 4.0 * (layer == "1") for layer in "01"}
    off = Metrics("made-up", store, EngineStatistics(), memory=made_up_memory(), expert_metrics="off")
    assert b"expert_tokens" not in off.render()
