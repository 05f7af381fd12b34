"""The dashboards and rules that are shipped, as tests look at them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

DOCKER = Path(__file__).parents[1] / "docker"
DASHBOARDS = sorted((DOCKER / "grafana/dashboards").glob("*.json"))


def asking(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """The panels that ask for something: neither a row's title nor a text."""
    return [panel for panel in dashboard["panels"] if panel["type"] not in ("row", "text")]


def queries(dashboard: dict[str, Any]) -> list[tuple[str, str]]:
    """Each query of a dashboard beside the title of its panel."""
    return [(panel["title"], target["expr"]) for panel in asking(dashboard) for target in panel["targets"]]
