"""A forked command does what a new program does, and ends with the tests that started it."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from server.model.checkpoint.locate import BUNDLED
from tests.e2e.forked_process import ForkedProcess, can_fork
from tests.e2e.hub import serving_hub
from tests.e2e.processes import run_command, serving

PARENT = """
import sys
from tests.e2e.processes import serving
with serving() as server:
    print(server.process.pid, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("words", [("--version",), ("key-digest",), ("verify", "nowhere"), ("serve", "--port", "x")])
def test_a_forked_command_does_what_a_new_program_does(words: tuple[str, ...]) -> None:
    forked, new = (
        run_command(*words, stdin="a-key-of-32-characters-or-longer\n", fresh=fresh) for fresh in (False, True)
    )
    assert (forked.returncode, forked.stdout, forked.stderr) == (new.returncode, new.stdout, new.stderr)


def test_a_forked_command_has_its_own_variables_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.toml").write_text("prot = 1\n")
    refused = run_command("serve", environment={"GREENROOM_CONFIG": "settings.toml"})
    assert (refused.returncode, "prot" in refused.stderr) == (2, True)


def test_a_forked_command_imports_the_library_of_the_hub_with_its_own_variables(tmp_path: Path) -> None:
    with serving_hub("somebody/some-model", BUNDLED) as hub:
        found = run_command("inspect", hub.model, "--json", environment=hub.environment(tmp_path))
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["model"] == hub.model


def test_a_forked_server_has_the_interface_of_a_process() -> None:
    with serving() as server:
        assert isinstance(server.process, ForkedProcess)
        assert server.process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(0.01)
        assert os.getpgid(server.process.pid) == os.getpgrp()
        server.process.send_signal(signal.SIGKILL)
        assert server.process.wait(60) == -signal.SIGKILL
        server.process.send_signal(signal.SIGTERM)  # to nobody


@pytest.mark.parametrize(
    ("variables", "is_possible"),
    [({}, True), ({"GREENROOM_PORT": "1"}, True), ({"HF_HOME": "/x"}, True), ({"LD_PRELOAD": "/x"}, False)],
)
def test_variables_that_modules_read_make_a_new_program(variables: dict[str, str], is_possible: bool) -> None:
    assert can_fork(["serve"], os.environ | variables) is is_possible


def test_a_model_that_takes_images_makes_a_new_program(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"vision_config": {}}')
    assert not can_fork(["serve", str(tmp_path)], os.environ)


def test_a_model_that_can_not_be_read_makes_a_new_program() -> None:
    """Other users may not read it; nobody reads a name that is too long."""
    assert not can_fork(["serve", "x" * 300], os.environ)


def test_a_server_ends_with_killed_tests() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as tests:
        descriptor = os.pidfd_open(int(tests.stdout.readline()))
        tests.kill()
        assert select.select([descriptor], [], [], 60)[0], "the server still runs"
        os.close(descriptor)
