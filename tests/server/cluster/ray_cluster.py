"""A Ray cluster on this machine, started by the real command."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx
import openai
import psutil

from server.cluster.deploy_file import describe, write
from server.cluster.options import ClusterOptions
from tests.e2e.processes import COMMAND, READY

ENGINE = "ray::ServeReplica:greenroom:engine"
INGRESS = "ray::ServeReplica:greenroom:ingress"
SECONDS = 120.0


@dataclass
class Cluster:
    """A running `greenroom cluster run`."""

    process: subprocess.Popen[str]
    url: str
    log: IO[str]

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60)

    def log_text(self) -> str:
        """Return what the command has written to standard error. The position at which it writes stays."""
        return os.pread(self.log.fileno(), 1 << 24, 0).decode(errors="replace")

    def processes(self, title: str = ENGINE) -> list[psutil.Process]:
        """Return the processes of a deployment's replicas."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if " ".join(process.cmdline()).startswith(title):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        return found

    def metric(self, name: str) -> dict[str, float]:
        """Return a metric of each replica, by its labels."""
        return metric(self.url, name)

    def total(self, name: str) -> float:
        return sum(self.metric(name).values())


def metric(url: str, name: str) -> dict[str, float]:
    """Return a metric of each replica, by its labels, as an ingress tells it."""
    lines = httpx.get(f"{url}/metrics", timeout=60).text.splitlines()
    samples = (line.rpartition(" ") for line in lines if line.startswith(f"greenroom_replica_{name}{{"))
    return {labels: float(value) for labels, _, value in samples}


def wait_until(is_true: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait until something is true, and fail if it takes too long."""
    ends_at = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < ends_at, "it did not become true in time"
        time.sleep(0.1)


@contextmanager
def running(folder: Path, environment: Mapping[str, str] | None = None, **options: Any) -> Iterator[Cluster]:
    """Start a cluster with the options of its file, and stop it afterwards in any case.

    Args:
        environment: additional variables.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    file = folder / "cluster.yaml"
    checked = ClusterOptions.checked({"memory": "700MiB", "cpus": 1, "drain_seconds": 10, **options})
    file.write_text(write(describe(checked, "127.0.0.1", port)))
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [COMMAND, "cluster", "run", str(file)],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        children: list[psutil.Process] = []
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith(READY):
                log.seek(0)
                raise AssertionError(f"no ready line but {line!r}; standard error: {log.read()[-4000:]}")
            yield Cluster(process, line.removeprefix(READY).split()[0], log)
        finally:
            if process.poll() is None:
                children = psutil.Process(process.pid).children(recursive=True)
                process.send_signal(signal.SIGINT)
            try:
                process.communicate(timeout=SECONDS)
            finally:
                for child in children:
                    if child.is_running():
                        child.kill()
