"""The health check of the image."""

from __future__ import annotations

import subprocess
import sys

from tests.docker.files import FOLDER
from tests.server.live.conftest import FakeServer


def check(port: int) -> tuple[int, str]:
    """Return the exit status and standard error."""
    # A proxy is for the hub; requests to the server in the same container must not use it.
    environment = {"GREENROOM_PORT": str(port), "http_proxy": "http://127.0.0.1:9", "LC_ALL": "C.UTF-8"}
    command = [sys.executable, "-I", str(FOLDER / "healthcheck.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
    return done.returncode, done.stderr


def test_live_server_is_healthy(live: FakeServer) -> None:
    assert check(live.port) == (0, "")


def test_dead_engine_is_unhealthy(live: FakeServer) -> None:
    live.engine.stop()
    assert check(live.port) == (1, '503: {"status":"dead"}\n')


def test_port_without_a_listener_is_unhealthy() -> None:
    status, error = check(1)
    assert status == 1
    assert error.startswith("no response: ")
