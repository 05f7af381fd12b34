"""The native kernels under sanitizers: of addresses and undefined behaviour at every level, and of threads at one."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.server.kernels.native.build import OPTIONS, build_sanitized_driver, build_thread_driver, load_setup

pytestmark = pytest.mark.slow

ROUNDS = 12


def run(driver: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(driver), str(ROUNDS)], capture_output=True, text=True, check=False, env=os.environ | OPTIONS
    )


@pytest.mark.timeout(600)  # almost all of it compiles the sources that changed since the last run
def test_random_calls_are_right_and_have_no_undefined_behaviour(tmp_path: Path) -> None:
    """The driver also runs hostile descriptions, from the same seed at each run; `make fuzz` runs others."""
    setup = load_setup()
    try:
        done = run(build_sanitized_driver(setup, tmp_path, has_reports=False))
    except setup.BuildFailure as failure:
        pytest.skip(f"nothing can be compiled with sanitizers: {failure}")
    if done.returncode:
        done = run(build_sanitized_driver(setup, tmp_path))  # says what and where
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert f"portable: {ROUNDS} rounds\n" in done.stdout


@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("setarch") is None, reason="the sanitizer needs addresses that are not randomised")
def test_threads_write_no_number_of_each_other(tmp_path: Path) -> None:
    setup = load_setup()
    try:
        driver = build_thread_driver(setup, tmp_path)
    except setup.BuildFailure as failure:
        pytest.skip(f"nothing can be compiled with the thread sanitizer: {failure}")
    done = subprocess.run(["setarch", "-R", str(driver), str(ROUNDS)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
