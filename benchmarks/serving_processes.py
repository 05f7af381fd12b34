"""Processes measured by ``benchmarks.serving``: a server, and an engine without a server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.load_generator import Completion

READY = "Greenroom ready: "
ENVIRONMENT = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}


@dataclass(frozen=True)
class Server:
    """A server, and its process id if it is a child process."""

    url: str
    pid: int | None = None

    def metric(self, name: str, labels: str = "") -> float:
        """Sum all samples of a metric whose labels contain a text."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        samples = (
            line.rpartition(" ") for line in lines if line.partition("{")[0].partition(" ")[0] == f"greenroom_{name}"
        )
        return sum(float(value) for key, _, value in samples if labels in key)

    def decode_steps(self) -> tuple[float, float]:
        """Return the number of decode steps since the start, and their seconds."""
        phase = 'phase="decode"'
        return self.metric("engine_steps_total", phase), self.metric("engine_step_seconds_total", phase)

    def cpu_seconds(self) -> tuple[float, float]:
        """Return the CPU time of the event loop's thread and of all threads; nan if the server is no child process."""
        if self.pid is None:
            return float("nan"), float("nan")
        threads = Path(f"/proc/{self.pid}/task").iterdir()
        seconds = {thread.name: int((thread / "schedstat").read_text().split()[0]) / 1e9 for thread in threads}
        return seconds[str(self.pid)], sum(seconds.values())


@contextmanager
def serving(arguments: Sequence[str]) -> Iterator[Server]:
    """Start `greenroom serve` on a free port."""
    command = [sys.executable, "-m", "server.cli", "serve", "--port", "0", "--log-level", "warning", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith(READY):
            sys.exit("the server did not start")
        try:
            yield Server(line.removeprefix(READY).split()[0], process.pid)
        finally:
            process.terminate()


class EngineAlone:
    """``benchmarks.engine_alone`` in a process that is idle between requests."""

    def __init__(self, process: subprocess.Popen[str]):
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout
        if not self._stdout.readline().startswith("{"):  # older checkouts print an empty object
            sys.exit("the engine did not start")

    def run(self, completions: Sequence[Completion]) -> tuple[float, float]:
        """Generate completions in one batch. Return the mean time of a decode step, and the total CPU time."""
        work = [[list(one.prompt_ids), one.max_tokens] for one in completions]
        self._stdin.write(json.dumps(work) + "\n")
        self._stdin.flush()
        found = json.loads(self._stdout.readline())
        return found["seconds"] / found["steps"], found["cpu_seconds"]


@contextmanager
def engine_alone(
    arguments: Sequence[str], python: str = sys.executable, folder: Path | None = None
) -> Iterator[EngineAlone]:
    """Start an engine with the same flags as the server, of the checkout in another folder by its interpreter."""
    command = [python, "-m", "benchmarks.engine_alone", "--log-level", "warning", *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=folder
    ) as process:
        assert process.stdin is not None
        yield EngineAlone(process)
        process.stdin.close()
