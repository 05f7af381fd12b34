"""Runs the real command in a new process, on a real socket."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx
import openai

from benchmarks.comparison.control_group import ControlGroup

COMMAND = str(Path(sys.executable).parent / "greenroom")
READY = "Greenroom ready: "


def total(samples: Mapping[str, float], name: str, *labels: str) -> float:
    """Return the sum of a metric's samples in ``Server.metrics`` that have all of the labels."""
    return sum(
        value
        for sample, value in samples.items()
        if sample.partition("{")[0] == f"greenroom_{name}" and all(label in sample for label in labels)
    )


@dataclass
class Server:
    """A running `greenroom serve`."""

    process: subprocess.Popen[str]
    log: IO[str]  # standard error: a file, for a pipe that nobody reads would stop the server once it is full
    url: str
    ready_line: str

    def metrics(self, key: str | None = None) -> dict[str, float]:
        """Return every sample of /metrics by name and labels, as printed.

        Args:
            key: the key of an administrator, who sees names that policies hide.
        """
        text = httpx.get(f"{self.url}/metrics", headers={} if key is None else {"x-api-key": key}).text
        samples = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def total(self, name: str, *labels: str) -> float:
        """Return ``total`` of the current metrics."""
        return total(self.metrics(), name, *labels)

    def client(self) -> openai.OpenAI:
        """Return a client of this server that does not retry."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def is_draining(self) -> bool:
        return bool(httpx.get(f"{self.url}/ready").json()["status"] == "draining")

    def interrupt(self) -> tuple[int, str, str]:
        """Press Ctrl-C; see ``end``."""
        self.process.send_signal(signal.SIGINT)
        return self.end()

    def end(self) -> tuple[int, str, str]:
        """Wait for the end. Return the exit status, the rest of standard output, and standard error."""
        out, _ = self.process.communicate(timeout=60)
        self.log.seek(0)
        return self.process.returncode, out, self.log.read()


@contextmanager
def serving(
    *arguments: str,
    port: int = 0,
    group: ControlGroup | None = None,
    environment: Mapping[str, str] | None = None,
    wrapper: Sequence[str] = (),
) -> Iterator[Server]:
    """Start a server, by default on a free port, and stop it afterwards in any case.

    Args:
        group: that it runs in.
        environment: additional variables.
        wrapper: a command that runs the server's command.
    """
    command = [*wrapper, COMMAND, "serve", *arguments, "--port", str(port)]
    command = command if group is None else group.command(command)
    with tempfile.TemporaryFile("w+") as log:
        variables = {**os.environ, **(environment or {})}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=variables)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith(READY):
                process.wait(timeout=60)
                log.seek(0)
                raise AssertionError(f"no ready line but {line!r}; standard error: {log.read()}")
            yield Server(process, log, line.removeprefix(READY).split()[0], line.strip())
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()


def run_command(
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    wrapper: Sequence[str] = (),
    stdin: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a `greenroom` command to its end.

    Args:
        environment: additional variables.
        wrapper: a command that runs this one.
        stdin: its input; None for that of the tests.
    """
    return subprocess.run(
        [*wrapper, COMMAND, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, **(environment or {})},
    )
