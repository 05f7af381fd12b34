"""Dashboards, rules and what operators are documented fit each other; a real Prometheus runs them in tests/e2e."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.dashboards import DASHBOARDS, DOCKER, query_panels

GRAFANA = DOCKER / "grafana"
OPERATIONS = DOCKER.parent / "docs/operations.md"


@pytest.fixture(params=DASHBOARDS, ids=lambda path: path.stem)
def dashboard(request: pytest.FixtureRequest) -> dict[str, Any]:
    return json.loads(request.param.read_text())


@pytest.fixture(scope="module")
def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((DOCKER / "prometheus/rules.yml").read_text())["groups"]
    return group["rules"]


def overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    return all(
        one[start] < other[start] + other[size] and other[start] < one[start] + one[size]
        for start, size in (("x", "w"), ("y", "h"))
    )


def test_panels_do_not_overlap(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= 24, panel["title"]
    for one, other in combinations(panels, 2):
        assert not overlap(one["gridPos"], other["gridPos"]), (one["title"], other["title"])


def test_every_panel_has_a_description_and_queries_the_selected_servers(dashboard: dict[str, Any]) -> None:
    datasource = {"type": "prometheus", "uid": "${datasource}"}
    for panel in query_panels(dashboard):
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["datasource"] == datasource
        references = Counter(target["refId"] for target in panel["targets"])
        assert set(references.values()) == {1}
        for target in panel["targets"]:
            assert target["datasource"] == datasource
            assert_selects_servers(target["expr"])


def assert_selects_servers(expression: str) -> None:
    selectors = re.findall(r"\b(?:greenroom_\w+|ALERTS)(\{[^}]*\})?", expression)
    assert selectors
    assert all('instance=~"$instance"' in selector for selector in selectors), expression


def test_servers_are_selected_by_model_and_address(dashboard: dict[str, Any]) -> None:
    source, model, instance, *others = dashboard["templating"]["list"]
    assert [source["name"], model["name"], instance["name"]] == ["datasource", "model", "instance"]
    assert model["query"]["query"] == "label_values(greenroom_model_info, model)"
    assert instance["query"]["query"] == 'label_values(greenroom_model_info{model=~"$model"}, instance)'
    assert [each["name"] for each in others] == (["replica"] if dashboard["uid"] == "greenroom-replicas" else [])


def test_alerts_are_marked_in_every_graph(dashboard: dict[str, Any]) -> None:
    (annotation,) = dashboard["annotations"]["list"]
    assert annotation["enable"]
    assert 'alertstate="firing"' in annotation["target"]["expr"]
    assert_selects_servers(annotation["target"]["expr"])


def test_dashboards_link_to_each_other() -> None:
    dashboards = [json.loads(path.read_text()) for path in DASHBOARDS]
    known = {f"/d/{dashboard['uid']}" for dashboard in dashboards}
    assert len(known) == len(dashboards)
    for dashboard in dashboards:
        assert {link["url"] for link in dashboard["links"]} == known - {f"/d/{dashboard['uid']}"}


def test_grafana_finds_its_data_source_and_dashboards() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    config = yaml.safe_load((DOCKER / "prometheus/prometheus.yml").read_text())
    assert source["type"] == "prometheus"
    assert source["isDefault"]
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/greenroom.yml").read_text())["providers"]
    assert Path(provider["options"]["path"]).name == GRAFANA.joinpath("dashboards").name


def test_each_alert_is_documented(rules: list[dict[str, Any]]) -> None:
    alerts = [rule["alert"] for rule in rules if "alert" in rule]
    documented = re.findall(r"^\| `(Greenroom\w+)` \| [^|]+ \| [^|]+ \|$", OPERATIONS.read_text(), re.MULTILINE)
    assert documented == alerts


def test_each_alert_links_to_a_panel_with_its_metric(rules: list[dict[str, Any]]) -> None:
    dashboards = {dashboard["uid"]: dashboard for path in DASHBOARDS for dashboard in [json.loads(path.read_text())]}
    recorded = {rule["record"]: rule["expr"] for rule in rules if "record" in rule}
    for rule in (rule for rule in rules if "alert" in rule):
        notes, watched = rule["annotations"], rule["expr"]
        for name, expression in recorded.items():
            watched = watched.replace(name, expression)
        panels = query_panels(dashboards[notes["__dashboardUid__"]])
        (panel,) = [panel for panel in panels if str(panel["id"]) == notes["__panelId__"]]
        shown = " ".join(target["expr"] for target in panel["targets"])
        metrics = re.findall(r"greenroom_\w+", watched)
        assert any(metric in shown for metric in metrics) or rule["alert"] == "GreenroomDown", rule["alert"]
        assert notes["action"].endswith(".")


def test_each_alert_is_tested_to_fire_and_to_resolve(rules: list[dict[str, Any]]) -> None:
    tests = yaml.safe_load((DOCKER / "prometheus/rules_test.yml").read_text())["tests"]
    for rule in rules:
        if "alert" in rule:
            courses = [
                [bool(case.get("exp_alerts")) for case in test.get("alert_rule_test", ()) if case["alertname"] == name]
                for test in tests
                for name in [rule["alert"]]
            ]
            assert [False, True, False] in courses, rule["alert"]
