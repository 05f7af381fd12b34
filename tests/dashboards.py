"""Helpers for tests of the Grafana dashboards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

DOCKER = Path(__file__).parents[1] / "docker"
DASHBOARDS = sorted((DOCKER / "grafana/dashboards").glob("*.json"))
OF_REPLICAS = DOCKER / "grafana/dashboards/replicas.json"
OF_SERVERS = [path for path in DASHBOARDS if path != OF_REPLICAS]


def query_panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the panels with queries: all but rows and texts."""
    return [panel for panel in dashboard["panels"] if panel["type"] not in ("row", "text")]


def queries(dashboard: dict[str, Any]) -> list[tuple[str, str]]:
    """Return each query of a dashboard, with the title of its panel."""
    return [(panel["title"], target["expr"]) for panel in query_panels(dashboard) for target in panel["targets"]]
