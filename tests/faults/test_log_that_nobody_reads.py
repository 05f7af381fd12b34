"""Standard error and standard output that nobody reads, that are full, or that are closed."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Event

import httpx
import pytest

from tests.e2e.processes import COMMAND

BODY = {"prompt": "Once", "max_tokens": 1}
PIPE_BYTES = 4096  # the least that a pipe can hold


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def started(redirection: str, files: Sequence[int] = ()) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Start a server by a shell that redirects its output; wait until it is ready."""
    port = free_port()
    command = ["bash", "-c", f'exec "$@" {redirection}', "bash", COMMAND, "serve", "--port", str(port)]
    process = subprocess.Popen(command, pass_fds=files)
    url = f"http://127.0.0.1:{port}"
    try:
        while not is_ready(url):
            assert process.poll() is None
            Event().wait(0.2)
        yield process, url
    finally:
        process.kill()
        process.wait()


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=60).status_code == 200
    except httpx.TransportError:
        return False


def test_a_full_pipe_stops_neither_requests_nor_sigterm() -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    with started(f"2>&{writer}", files=[writer]) as (process, url):
        os.close(writer)
        with httpx.Client(base_url=url, timeout=60) as client:
            for _ in range(100):  # 200 bytes of log each
                assert client.post("/v1/completions", json=BODY).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    os.close(reader)


@pytest.mark.parametrize("redirection", ["1>/dev/full", "1>&-", "2>/dev/full", "2>&-", "0<&- 1>&- 2>&-"])
def test_outputs_that_take_nothing_do_not_end_the_server(redirection: str) -> None:
    with started(redirection) as (process, url):
        assert httpx.post(f"{url}/v1/completions", json=BODY, timeout=60).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.mark.parametrize("output", [1, 2])
def test_outputs_whose_reader_has_gone_do_not_end_the_server(output: int) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with started(f"{output}>&{writer}", files=[writer]) as (process, url):
        answer = httpx.post(f"{url}/v1/completions", json=BODY, timeout=60)
        assert json.loads(answer.text)["usage"]["completion_tokens"] == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    os.close(writer)
