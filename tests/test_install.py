"""The progress, the log and the errors of an installation by make (`.ci/install.py`), of commands like pip."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / ".ci/install.py"
SAID = """\
Obtaining file:///clone
  Running command pip subprocess to install build dependencies
  Collecting setuptools>=77
Collecting torch>=2.9 (from greenroom==0.2.0)
  Downloading torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl (190.2 MB)
  compiling api.cpp: c++ -O3 -c api.cpp
  compiled api.cpp in 3 s (1 of 43)
Installing collected packages: torch, greenroom
"""


def install(folder: Path, program: str, **environment: str) -> tuple[int, str, str]:
    """Run the script over a shell's program, without a terminal; return its status, its output and the log."""
    command = [sys.executable, SCRIPT, folder / "log", "sh", "-c", program]
    kept = {"PATH": os.environ["PATH"], **environment}
    done = subprocess.run(command, env=kept, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout, (folder / "log").read_text()


def test_output_goes_into_the_log_and_its_place_is_said(tmp_path: Path) -> None:
    (tmp_path / "said").write_text(SAID)
    status, out, log = install(tmp_path, f"cat {tmp_path}/said; echo and errors >&2")
    assert status == 0
    assert log == SAID + "and errors\n"
    first, *steps, last = out.splitlines()
    assert first == f"Installing. The first time takes minutes. Log: {tmp_path}/log"
    assert steps == ["0:00 installing the packages"]
    assert last.startswith("Installed in 0:0")


def test_a_failure_shows_the_end_of_the_log_and_its_place(tmp_path: Path) -> None:
    status, out, _ = install(tmp_path, "seq 1000; echo ERROR: no such package; exit 7")
    assert status == 1
    assert "\n976\n" not in out
    assert "\n1000\nERROR: no such package\nThe installation failed (status 7): sh -c " in out
    assert out.endswith(f"The lines above are the end of its log, {tmp_path}/log.\n")


def test_kernels_that_could_not_be_built_are_told_after_a_success(tmp_path: Path) -> None:
    warning = "no native kernels: pip found no C++ compiler; torch computes instead, which is slower"
    status, out, _ = install(tmp_path, f"echo '  warning: build_ext: {warning}'")
    assert status == 0
    assert f"\nwarning: {warning}\nInstalled in" in out


@pytest.mark.parametrize(("ci", "is_live"), [("", True), ("true", False)])
def test_a_terminal_shows_one_line_that_is_rewritten_except_in_ci(tmp_path: Path, ci: str, *, is_live: bool) -> None:
    (tmp_path / "said").write_text(SAID)
    reader, writer = pty.openpty()
    environment = {"PATH": os.environ["PATH"], "CI": ci}
    command = [sys.executable, SCRIPT, tmp_path / "log", "cat", tmp_path / "said"]
    subprocess.run(command, env=environment, stdout=writer, check=True, timeout=60)
    os.close(writer)
    out = os.read(reader, 1 << 16).decode()
    os.close(reader)
    assert ("\r0:00 installing the packages\x1b[K" in out) == is_live
    assert ("\n0:00 installing the packages\r\n" in out) != is_live
