"""Clusters whose Ray is slow to start, or dies."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest

from server.model.checkpoint.locate import BUNDLED_NAME as MODEL
from tests.server.cluster.ray_cluster import running

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

# Python runs it at its start. Ray gives an agent that chooses its port 15 seconds.
SLOW_AGENTS = """\
import sys, time

if any(word.endswith(("dashboard/agent.py", "runtime_env/agent/main.py")) for word in sys.orig_argv):
    time.sleep(20)
"""


def test_a_cluster_starts_though_the_agents_of_ray_take_twenty_seconds(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SLOW_AGENTS)
    with running(tmp_path, {"PYTHONPATH": str(tmp_path)}, replicas=1) as cluster, cluster.http() as http:
        reply = http.post("/v1/completions", json={"model": MODEL, "prompt": "Once upon a time", "max_tokens": 4})
    assert reply.is_success


def test_a_clean_stop_tells_of_no_failure_and_no_retry(tmp_path: Path) -> None:
    with running(tmp_path, replicas=1) as cluster:
        told = len(cluster.log_text())
        cluster.process.send_signal(signal.SIGINT)
        assert cluster.process.wait(60) == 0
        last = cluster.log_text()[told:]
    assert "retries" not in last
    assert "failed" not in last


def test_a_cluster_whose_ray_has_died_ends_and_says_so(tmp_path: Path) -> None:
    with running(tmp_path, replicas=1) as cluster:
        for process in psutil.Process(cluster.process.pid).children():
            if process.name() == "raylet":
                process.kill()
        assert cluster.process.wait(30) == 1
        assert "greenroom: Ray has ended, as its raylet did" in cluster.log_text()
