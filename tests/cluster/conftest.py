"""These tests take minutes, so only ``-m cluster`` collects them (``make cluster``)."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import psutil
import pytest

from server.cluster.local_node import local_node, set_variables
from server.loading.bundled_weights import ADAPTERS
from tests.server.cluster.ray_cluster import ENGINE, metric, wait_until

OPTIONS = {"memory": "700MiB", "cpus": 1, "drain_seconds": 20}


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    return None if config.getoption("-m") == "cluster" else True


@dataclass
class Cluster:
    """Serve on a Ray cluster of this process."""

    url: str
    port: int

    def deploy(self, *, settings: dict[str, Any] | None = None, **options: Any) -> None:
        """Deploy an application, or update the one that runs, and wait until it does."""
        from ray import serve  # noqa: PLC0415

        from server.cluster.application import build  # noqa: PLC0415

        values = {"adapters_dir": str(ADAPTERS), **(settings or {})}
        serve.run(build({**OPTIONS, **options, "settings": values}), name="greenroom", route_prefix="/")
        wait_until(lambda: len(self.replicas()) == options.get("replicas", 2), 120)

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=120)

    def replicas(self) -> set[str]:
        """Return the names of the replicas that the ingress hears of."""
        return {labels.split('"')[1] for labels in self.metric("kv_cache_usage_perc")}

    def metric(self, name: str) -> dict[str, float]:
        """Return a metric of each replica, by its labels."""
        return metric(self.url, name)

    def total(self, name: str) -> float:
        return sum(self.metric(name).values())

    def merged(self, name: str) -> float:
        """Return a metric of all replicas together, without labels."""
        lines = httpx.get(f"{self.url}/metrics", timeout=60).text.splitlines()
        (value,) = [line.split()[1] for line in lines if line.startswith(f"greenroom_{name} ")]
        return float(value)

    def processes(self, title: str = ENGINE) -> list[psutil.Process]:
        children = psutil.Process(os.getpid()).children(recursive=True)
        return [each for each in children if each.is_running() and " ".join(each.cmdline()).startswith(title)]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    set_variables()  # before Ray is imported
    from ray import serve  # noqa: PLC0415

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with local_node(4):
        serve.start(http_options={"host": "127.0.0.1", "port": port}, proxy_location="HeadOnly")
        try:
            yield Cluster(f"http://127.0.0.1:{port}", port)
        finally:
            serve.shutdown()
