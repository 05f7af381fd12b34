"""Signals that would end the server without draining, and SIGHUP, which loads what can be loaded again."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import httpx
import pytest

from tests.e2e.processes import COMMAND, READY, Server, serving

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "api-keys"
    path.write_text("first\n")
    return path


@pytest.fixture(scope="module")
def server(key_file: Path) -> Iterator[Server]:
    with serving("--api-key-file", str(key_file), "--api-key", "fixed") as running:
        yield running


def status(server: Server, key: str) -> int:
    return httpx.get(f"{server.url}/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code


def wait_for_line(server: Server, part: str, count: int) -> str:
    """Wait until the log has so many lines with a part; return the last."""
    name = f"/proc/{os.getpid()}/fd/{server.log.fileno()}"
    while True:
        lines = [line for line in Path(name).read_text().splitlines() if part in line]
        if len(lines) >= count:
            return lines[-1]
        Event().wait(0.05)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP])
def test_the_server_goes_on(server: Server, number: signal.Signals) -> None:
    server.process.send_signal(number)
    assert status(server, "fixed") == 200
    assert server.process.poll() is None


def test_sighup_reads_the_key_file_again(server: Server, key_file: Path) -> None:
    done = Path(f"/proc/{os.getpid()}/fd/{server.log.fileno()}").read_text().count("reloaded the keys")
    key_file.write_text("second\nthird\n")
    server.process.send_signal(signal.SIGHUP)
    assert wait_for_line(server, "reloaded the keys", done + 1).endswith("3 for the API, 0 for administration")
    assert [status(server, key) for key in ("first", "second", "third", "fixed")] == [401, 200, 200, 200]


def test_a_key_file_that_can_not_be_used_leaves_the_keys_as_they_are(server: Server, key_file: Path) -> None:
    key_file.write_text("second\n")
    server.process.send_signal(signal.SIGHUP)
    wait_for_line(server, "reloaded the keys: 2", 1)
    key_file.write_text("")
    server.process.send_signal(signal.SIGHUP)
    line = wait_for_line(server, "cannot reload the keys, which stay as they are", 1)
    assert line.endswith(f"--api-key-file {key_file}: the file has no key; write one per line")
    assert [status(server, key) for key in ("second", "fixed", "other")] == [200, 200, 401]


def test_a_server_whose_terminal_is_closed_drains() -> None:
    """A closed terminal sends SIGHUP as well, and nobody is left to end the server."""
    master, terminal = pty.openpty()
    command = [COMMAND, "serve", "--port", "0"]
    process = subprocess.Popen(
        ["setsid", "--ctty", *command], stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    os.close(terminal)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(READY)
        os.close(master)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()
