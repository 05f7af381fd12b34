"""The dashboards and rules that are shipped, as tests look at them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

DOCKER = Path(__file__).parents[1] / "docker"
DASHBOARDS = sorted((DOCKER / "grafana/dashboards").glob("*.json"))


def queries(dashboard: dict[str, Any]) -> list[tuple[str, str]]:
    """Each query of a dashboard beside the title of its panel."""
    return [
        (panel["title"], target["expr"])
        for panel in dashboard["panels"]
        if panel["type"] != "row"
        for target in panel["targets"]
    ]
