"""Two packers on one target: the second one is turned away, also from a first one that stands still."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from expert_store import open_pack, unreadable_experts
from server.model.checkpoint.locate import BUNDLED
from tests.e2e.processes import run_command, start

pytestmark = pytest.mark.slow


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def first(out: Path) -> Iterator[subprocess.Popen[str]]:
    """A packer that is stopped in the middle of its work."""
    words = ("pack", str(BUNDLED), str(out), "--weights", "int8", "--jobs", "1")
    process = start(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        while not list(out.glob("*.partial/experts-*.pack")):
            assert process.poll() is None
        process.send_signal(signal.SIGSTOP)
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_second_is_turned_away_and_the_first_finishes(first: subprocess.Popen[str], out: Path) -> None:
    second = run_command("pack", str(BUNDLED), str(out), "--weights", "int8")
    assert second.returncode == 1
    assert second.stderr == (f"greenroom: another greenroom pack is writing to {out}; wait for it or stop it\n")
    first.send_signal(signal.SIGCONT)
    _, log = first.communicate(timeout=60)
    assert first.returncode == 0, log
    assert not unreadable_experts(open_pack(out).catalog, lambda _: None)


def test_another_model_can_be_packed_there_when_the_first_was_killed(first: subprocess.Popen[str], out: Path) -> None:
    first.kill()
    first.wait()
    third = run_command("pack", str(BUNDLED), str(out), "--weights", "int4")
    assert third.returncode == 0, third.stderr
    assert not unreadable_experts(open_pack(out).catalog, lambda _: None)
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [".lock", "manifest.json", open_pack(out).manifest.data]
    )
