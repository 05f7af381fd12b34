"""Random calls of the native kernels, as they are in the library, at every level that this machine can run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.server.kernels.native.build import build_driver, load_setup

ROUNDS = 12


@pytest.mark.slow
@pytest.mark.timeout(600)  # it compiles what is not in the cache of objects
def test_random_calls_are_right_and_hostile_ones_refused(tmp_path: Path) -> None:
    """`make nightly` runs the same calls under sanitizers."""
    setup = load_setup()
    try:
        driver = build_driver(setup, tmp_path)
    except setup.BuildFailure as failure:
        pytest.skip(f"nothing can be compiled: {failure}")
    done = subprocess.run([str(driver), str(ROUNDS)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert f"portable: {ROUNDS} rounds\n" in done.stdout
