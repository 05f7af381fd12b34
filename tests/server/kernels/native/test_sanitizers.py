"""The native kernels under the address and undefined-behaviour sanitizers, at every level that this machine can run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.server.kernels.native.build import OPTIONS, build_sanitized_driver, load_setup

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
