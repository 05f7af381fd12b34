"""Mutated configs that were findings are refused, or served within the memory that is planned."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.timeout(300)
def test_mutations_that_were_findings_are_none() -> None:
    command = [sys.executable, "-m", "tests.fuzz.configs", "--seconds", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280, env=environment)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
