"""Clocks that jump; the C locale; a strict umask; a read-only root; another user than root."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.e2e.processes import COMMAND, Server, serving
from tests.faults.preload import Faults
from tests.needs import need_mounts, need_readable

pytestmark = pytest.mark.slow

DAY_SECONDS = 86_400
# The first argument is the folder for temporary files, the rest the command.
READ_ONLY = (
    'mount --make-rprivate / && mount -o remount,ro,bind / && mount -t tmpfs tmpfs "$1" && export TMPDIR="$1" && shift '
    '&& exec "$@"'
)
AS_USER = ("setpriv", "--reuid=1001", "--regid=1001", "--clear-groups")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user, or mount")


def completion(server: Server, **fields: object) -> httpx.Response:
    body = {"prompt": "Once", "max_tokens": 8, "temperature": 0, "ignore_eos": True, **fields}
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=120)


def read_only(folder: Path, as_user: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the command that runs another one with a root that can't be written to, but for ``folder``.

    The folder is no fixed one, since the checkout, the environment and Python may lie below any.
    """
    return ("unshare", "--mount", "sh", "-c", READ_ONLY, "sh", str(folder), *as_user)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that all users reach, which none of pytest's is."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o1777)
        yield Path(name)


@contextmanager
def ends_well(*arguments: str, **how: object) -> Iterator[Server]:
    """A server that has answered nothing with an error by the end."""
    with serving(*arguments, **how) as server:  # type: ignore[arg-type]
        yield server
        status, _, err = server.interrupt()
    assert status == 0
    assert "Traceback" not in err


@pytest.fixture
def faults(tmp_path: Path) -> Faults:
    return Faults(tmp_path)


@pytest.mark.parametrize("seconds", [-DAY_SECONDS, 3650 * DAY_SECONDS])
def test_a_clock_that_jumps_ends_no_request_and_releases_no_limit(faults: Faults, seconds: int) -> None:
    limits = ("--rate-limit", "4/h")
    with ends_well(*limits, environment=faults.environment) as server, ThreadPoolExecutor(1) as clients:
        running = clients.submit(completion, server, max_tokens=1500, timeout=600)
        while server.total("num_requests_running") == 0:
            assert not running.done()
        faults.move_clock(seconds)
        created = completion(server, timeout=60).json()["created"]
        assert abs(created - time.time() - seconds) < DAY_SECONDS / 2  # the jump has arrived
        assert running.result().json()["usage"]["completion_tokens"] == 1500
        statuses = [completion(server).status_code for _ in range(3)]
        assert statuses == [200, 200, 429]
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert 0 <= server.total("e2e_request_latency_seconds_sum") < 600


def test_the_c_locale_changes_no_text(tmp_path: Path) -> None:
    folder = shutil.copytree("server/demo/model", tmp_path / "modèle 模型")
    environment = {"LC_ALL": "C", "LANG": "C"}
    prompt = "Ça va, 你好 😀"
    with ends_well(str(folder), "--log-prompts", environment=environment) as server:
        listed = httpx.get(f"{server.url}/v1/models").json()["data"][0]["id"]
        assert listed == "modèle 模型"
        answer = completion(server, prompt=prompt, echo=True, max_tokens=1, model=listed)
        assert answer.json()["choices"][0]["text"].startswith(prompt)


def test_a_strict_umask_serves_and_packs_for_the_owner_alone(tmp_path: Path) -> None:
    umask = ("bash", "-c", 'umask 077; exec "$@"', "bash")
    subprocess.run([*umask, COMMAND, "pack", "server/demo/model", str(tmp_path / "pack")], check=True)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert {mode & 0o077 for mode in modes} == {0}
    with ends_well(str(tmp_path / "pack"), wrapper=umask) as server:
        assert completion(server).status_code == 200


@needs_root
@pytest.mark.parametrize("as_user", [(), AS_USER], ids=["root", "user"])
def test_a_read_only_root_is_enough(as_user: Sequence[str], open_folder: Path) -> None:
    need_mounts(*read_only(open_folder), "true")
    need_readable(as_user, open_folder)
    prefix = read_only(open_folder, as_user)
    environment = {"HOME": "/nonexistent", "XDG_CACHE_HOME": "/nonexistent/cache"}
    with ends_well(wrapper=prefix, environment=environment) as server:
        assert completion(server).status_code == 200
        chat = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
        assert httpx.post(f"{server.url}/v1/chat/completions", json=chat, timeout=120).status_code == 200
