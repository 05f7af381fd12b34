"""Runs the real command in a new process, on a real socket."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx
import openai

from benchmarks.comparison.control_group import ControlGroup
from tests.e2e.forked_process import ForkedProcess, can_fork

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
    clients: ExitStack  # closes them after the server's end

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
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)
        return self.clients.enter_context(client)

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


def start(
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    wrapper: Sequence[str] = (),
    fresh: bool = False,
    **options: Any,
) -> subprocess.Popen[str]:
    """Start a `greenroom` command; one that does not have to be a new program is forked.

    Each subcommand has a test that starts it as a new program.

    Args:
        environment: additional variables. Those that may be read while modules are imported make a new program.
        wrapper: a command that runs this one, as a new program.
        fresh: start a new program in any case.
        options: of ``subprocess.Popen``: the standard streams.
    """
    command = [*wrapper, COMMAND, *arguments]
    variables = {**os.environ, **(environment or {})}
    is_forked = not fresh and not wrapper and can_fork(arguments, variables)
    kind = ForkedProcess if is_forked else subprocess.Popen[str]
    return kind(command, text=True, env=variables, **options)


@contextmanager
def serving(
    *arguments: str,
    port: int = 0,
    group: ControlGroup | None = None,
    environment: Mapping[str, str] | None = None,
    wrapper: Sequence[str] = (),
    fresh: bool = False,
) -> Iterator[Server]:
    """Start a server, by default on a free port, and stop it afterwards in any case.

    Args:
        group: that it runs in, as a new program.
        environment: additional variables.
        wrapper: a command that runs the server's command.
        fresh: start a new program, instead of a fork where that is the same.
    """
    wrapper = wrapper if group is None else group.command(wrapper)
    with tempfile.TemporaryFile("w+") as log, ExitStack() as clients:
        process = start(
            *("serve", *arguments, "--port", str(port)),
            environment=environment,
            wrapper=wrapper,
            fresh=fresh,
            stdout=subprocess.PIPE,
            stderr=log,
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith(READY):
                process.wait(timeout=60)
                log.seek(0)
                raise AssertionError(f"no ready line but {line!r}; standard error: {log.read()}")
            yield Server(process, log, line.removeprefix(READY).split()[0], line.strip(), clients)
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()


def run_command(
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    wrapper: Sequence[str] = (),
    stdin: str | None = None,
    fresh: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run a `greenroom` command to its end.

    Args:
        environment: additional variables.
        wrapper: a command that runs this one.
        stdin: its input; None for that of the tests.
        fresh: start a new program, instead of a fork where that is the same.
    """
    streams = {
        "stdin": None if stdin is None else subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
    }
    with start(*arguments, environment=environment, wrapper=wrapper, fresh=fresh, **streams) as process:
        try:
            out, errors = process.communicate(stdin, timeout=100)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, errors)
