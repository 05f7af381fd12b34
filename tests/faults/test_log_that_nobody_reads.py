"""Standard error and standard output that nobody reads, that are full, or that are closed."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event

import httpx
import pytest

from tests.e2e.processes import start

pytestmark = pytest.mark.slow

BODY = {"prompt": "Once", "max_tokens": 1}
PIPE_BYTES = 4096  # the least that a pipe can hold


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def started(*wrapper: str, **outputs: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a server with these outputs; wait until it is ready."""
    port = free_port()
    process = start("serve", "--port", str(port), wrapper=wrapper, **outputs)
    url = f"http://127.0.0.1:{port}"
    try:
        while not is_ready(url):
            assert process.poll() is None
            Event().wait(0.2)
        yield process, url
    finally:
        process.kill()
        process.wait()


def answers_and_ends(process: subprocess.Popen[str], url: str) -> None:
    answer = httpx.post(f"{url}/v1/completions", json=BODY, timeout=60)
    assert json.loads(answer.text)["usage"]["completion_tokens"] == 1
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=60).status_code == 200
    except httpx.TransportError:
        return False


def test_a_full_pipe_stops_neither_requests_nor_sigterm() -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    with started(stderr=writer) as (process, url):
        os.close(writer)
        with httpx.Client(base_url=url, timeout=60) as client:
            for _ in range(100):  # 200 bytes of log each
                assert client.post("/v1/completions", json=BODY).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    os.close(reader)


@pytest.mark.parametrize("output", ["stdout", "stderr"])
def test_a_full_disk_under_an_output_does_not_end_the_server(output: str) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    with started(**{output: full}) as (process, url):
        answers_and_ends(process, url)
    os.close(full)


@pytest.mark.parametrize("redirection", ["1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_outputs_do_not_end_the_server(redirection: str) -> None:
    with started("bash", "-c", f'exec "$@" {redirection}', "bash") as (process, url):
        answers_and_ends(process, url)


@pytest.mark.parametrize("output", ["stdout", "stderr"])
def test_outputs_whose_reader_has_gone_do_not_end_the_server(output: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with started(**{output: writer}) as (process, url):
        answers_and_ends(process, url)
    os.close(writer)
