"""Files that are pipes, devices, links to nothing or unreadable end the start in one line, without waiting."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from server.model.checkpoint.locate import BUNDLED
from tests.e2e.processes import run_command
from tests.needs import WITHOUT_RIGHTS, need_readable

pytestmark = pytest.mark.slow

INDEX, SHARD = "model.safetensors.index.json", "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BUNDLED, tmp_path / "tiny"))


def replace(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink(missing_ok=True)
    make(path)


def assert_refused(result: subprocess.CompletedProcess[str], reason: str) -> None:
    assert (result.returncode, result.stdout) == (1, "")
    last = result.stderr.splitlines()[-1]
    assert last.startswith("greenroom: ")
    assert reason in last
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("config.json", os.mkfifo, "config.json is not a regular file"),
        (INDEX, os.mkfifo, f"{INDEX} is not a regular file"),
        (INDEX, lambda path: path.symlink_to("/dev/zero"), f"{INDEX} is not a regular file"),
        (SHARD, os.mkfifo, f"{SHARD} is not a regular file"),
        (SHARD, Path.touch, f"{SHARD} is 0 bytes long, too short for a safetensors file"),
        ("tokenizer.json", os.mkfifo, "tokenizer.json is not a regular file"),
        ("config.json", lambda path: path.symlink_to("nowhere"), "cannot read"),
    ],
)
def test_odd_files_are_refused(folder: Path, name: str, make: Callable[[Path], object], reason: str) -> None:
    replace(folder / name, make)
    assert_refused(run_command("serve", str(folder), "--port", "0"), reason)


@pytest.mark.parametrize("name", ["config.json", SHARD])
def test_files_without_rights_are_refused(folder: Path, name: str) -> None:
    need_readable(WITHOUT_RIGHTS)
    (folder / name).chmod(0)
    result = run_command("serve", str(folder), "--port", "0", wrapper=WITHOUT_RIGHTS)
    assert_refused(result, f"{name}: Permission denied")


def test_a_pack_without_rights_is_not_taken_for_another_folder(tmp_path: Path) -> None:
    need_readable(WITHOUT_RIGHTS)
    pack = tmp_path / "pack"
    pack.mkdir(mode=0)
    result = run_command("verify", str(pack), wrapper=WITHOUT_RIGHTS)
    assert_refused(result, f"{pack} can't be read: Permission denied; check its permissions (ls -ld)")
