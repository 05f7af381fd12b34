"""A cluster of one replica that becomes two under load, and one again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from server.loading.bundled_weights import ADAPTERS
from server.model.checkpoint.locate import BUNDLED_NAME as MODEL
from tests.server.cluster.ray_cluster import Cluster, running, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]

PINNED = [[0, 1], [2, 3]]


@contextmanager
def queue(cluster: Cluster, length: int) -> Iterator[None]:
    """Keep requests waiting."""
    asked = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 200, "ignore_eos": True}
    is_over = threading.Event()

    def ask() -> None:
        with cluster.http() as http:
            while not is_over.is_set():
                http.post("/v1/completions", json=asked).raise_for_status()

    with ThreadPoolExecutor(length) as pool:
        asking = [pool.submit(ask) for _ in range(length)]
        try:
            yield
        finally:
            is_over.set()
        for each in asking:
            each.result()


def test_a_queue_makes_a_second_replica_that_has_what_the_first_holds_and_idle_time_stops_one(tmp_path: Path) -> None:
    settings = {"max_running_requests": 1, "adapters_dir": str(ADAPTERS)}
    times = {"scale_up_seconds": 1, "scale_down_seconds": 2}
    with running(tmp_path, replicas=1, max_replicas=2, settings=settings, **times) as cluster:
        with cluster.http() as http:
            http.post("/v1/experts/pin", json={"experts": PINNED}).raise_for_status()
            http.post("/v1/load_lora_adapter", json={"lora_name": "pies", "lora_path": "recipes"}).raise_for_status()
        with queue(cluster, 12):
            wait_until(lambda: len(cluster.metric("num_requests_running")) == 2, 60)
            pinned = cluster.metric("expert_pinned")
            with cluster.http() as http:
                assert http.get("/v1/models/pies").is_success
        assert [number for labels, number in pinned.items() if 'tier="host"' in labels] == [len(PINNED)] * 2
        wait_until(lambda: len(cluster.metric("num_requests_running")) == 1, 60)
