"""Metrics of several replicas as one page."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from expert_store import PREDICTORS, ExpertStore, PrefetchStatistics
from expert_store.disk_cache.fill import FillProgress
from server.cluster.merged_metrics import GAUGES, SUMMED, merge_metrics, sum_counts
from server.engine.engine_statistics import EngineStatistics
from server.observability.metrics import Metrics
from server.weights.variant_registry import VariantRegistry
from tests.expert_store.files import make_catalog
from tests.made_up_memory import made_up_memory
from tests.server.weights.adapter_rig import Rig

PAGE = """\
# HELP greenroom_prompt_tokens_total Tokens.
# TYPE greenroom_prompt_tokens_total counter
greenroom_prompt_tokens_total{{model="m"}} {tokens}
# HELP greenroom_expert_hit_ratio Share.
# TYPE greenroom_expert_hit_ratio gauge
greenroom_expert_hit_ratio {ratio}
# HELP greenroom_adapter_tokens_total Tokens.
# TYPE greenroom_adapter_tokens_total counter
greenroom_adapter_tokens_total{{adapter="{adapter}"}} {tokens}
"""
PREFETCHING = PrefetchStatistics(False, dict.fromkeys(PREDICTORS, 0), dict.fromkeys(PREDICTORS, 0), {}, None, None)


def page(tokens: int, ratio: float = 0.5, adapter: str = "law") -> bytes:
    return PAGE.format(tokens=tokens, ratio=ratio, adapter=adapter).encode()


def merged_gauge(name: str, *values: float, labels: str = "") -> float:
    pages = {
        str(
            number
        ): f"# HELP greenroom_{name} A.\n# TYPE greenroom_{name} gauge\ngreenroom_{name}{labels} {value}\n".encode()
        for number, value in enumerate(values)
    }
    (line,) = [line for line in merge_metrics(pages).decode().splitlines() if line.startswith(f"greenroom_{name}")]
    return float(line.rpartition(" ")[2])


def test_metrics_are_summed_and_told_by_replica() -> None:
    lines = merge_metrics({"a": page(3), "b": page(4, 1.0)}).decode().splitlines()
    assert 'greenroom_prompt_tokens_total{model="m"} 7' in lines
    assert "greenroom_expert_hit_ratio 0.75" in lines
    assert 'greenroom_replica_prompt_tokens_total{replica="b",model="m"} 4' in lines


def test_merged_metrics_have_the_type_of_each_family_once() -> None:
    lines = merge_metrics({"a": page(3)}).decode().splitlines()
    types = [line for line in lines if line.startswith("# TYPE")]
    assert len(types) == len(set(types)) == 6
    assert "# TYPE greenroom_replica_prompt_tokens_total counter" in types


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a server that has all that there are metrics of."""
    folder = tmp_path_factory.mktemp("server")
    catalog = make_catalog(folder)
    store, rig = ExpertStore(catalog, catalog.total_bytes), Rig(folder)
    rig.load("law")
    parts: dict[str, Any] = {
        "prefetcher": SimpleNamespace(statistics=lambda: PREFETCHING),
        "fill": SimpleNamespace(progress=lambda: FillProgress(1, 2, 3.5, "filling")),
    }
    metrics = Metrics(
        'a "model",adapter={of} \u2028 mine\n',
        store,
        EngineStatistics(num_running=2, stall_share=0.25),
        memory=made_up_memory(),
        adapters=rig.registry,
        variants=VariantRegistry(store, lambda: pytest.fail("a variant is loaded"), str, folder=None),
        **parts,
    )
    metrics.access_refusals = lambda: [(("tenants", "model"), 3)]
    page = metrics.render().decode()
    rig.memory.close()
    store.close()
    return page


def test_every_gauge_of_a_server_has_a_rule_by_which_replicas_are_merged_and_all_else_is_summed(complete: str) -> None:
    types = dict(re.findall(r"^# TYPE greenroom_(\w+) (\w+)$", complete, re.MULTILINE))
    assert {name for name, kind in types.items() if kind not in SUMMED} == GAUGES.keys()


def test_the_metrics_of_one_replica_are_its_own(complete: str) -> None:
    merged = list(text_string_to_metric_families(merge_metrics({"a": complete.encode()}).decode()))
    families = [each for each in text_string_to_metric_families(complete) if each.samples]
    assert [each for each in merged if not each.name.startswith("greenroom_replica_")] == families
    own = [sample for each in merged if each.name.startswith("greenroom_replica_") for sample in each.samples]
    assert {sample.labels["replica"] for sample in own} == {"a"}


@pytest.mark.parametrize(
    ("name", "values", "merged"),
    [
        ("model_info", (1, 1), 1),
        ("engine_alive", (1, 0), 0),
        ("expert_stall_share", (0.9, 0.7), 0.8),
        ("expert_prefetch_active", (1, 1), 1),
        ("num_requests_running", (2, 3), 5),
        ("download_seconds_left", (20, 30), 30),
    ],
)
def test_a_gauge_is_merged_by_its_rule(name: str, values: tuple[float, ...], merged: float) -> None:
    assert merged_gauge(name, *values) == pytest.approx(merged)


@pytest.mark.parametrize(("state", "merged"), [("ok", 0), ("failing", 1)])
def test_stores_are_ok_if_all_are_and_failing_if_one_is(state: str, merged: int) -> None:
    of_one = {"ok": (1, 0), "failing": (0, 1)}[state]
    assert merged_gauge("expert_store_health", *of_one, labels=f'{{state="{state}"}}') == merged


def test_the_engine_is_not_alive_where_no_replica_answers() -> None:
    assert b"\ngreenroom_engine_alive 0\n" in merge_metrics({}, [page(3)])


def test_counts_of_replicas_that_are_gone_are_added_and_their_gauges_are_not() -> None:
    lines = merge_metrics({"a": page(3, 1.0)}, [page(4, 0.0), sum_counts([page(5), page(6)])]).decode().splitlines()
    assert 'greenroom_prompt_tokens_total{model="m"} 18' in lines
    assert "greenroom_expert_hit_ratio 1" in lines
    assert not any("replica=" in line for line in lines if 'replica="a"' not in line)


def test_an_adapter_that_no_replica_has_is_not_listed_for_those_that_are_gone() -> None:
    text = merge_metrics({"a": page(3, adapter="law")}, [page(4, adapter="law"), page(5, adapter="code")]).decode()
    assert 'greenroom_adapter_tokens_total{adapter="law"} 7' in text
    assert "code" not in text


def test_hidden_names_are_summed_as_others_are() -> None:
    text = merge_metrics({"a": page(3), "b": page(4)}, hash_name=lambda name: name[::-1]).decode()
    assert 'greenroom_adapter_tokens_total{adapter="wal"} 7' in text
    assert "law" not in text
