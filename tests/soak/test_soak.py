"""A soak of twelve seconds, whose disturbances follow each other fast; `make soak` runs an hour."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


@pytest.mark.timeout(300)
def test_nothing_grows_and_every_error_has_a_fault_that_explains_it() -> None:
    command = [sys.executable, "-m", "tests.soak", "--minutes", "0.2", "--seed", "20"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    line = json.loads(done.stdout.splitlines()[-1])
    assert sum(line["requests"].values()) > line["clients_left"] > 0
    assert line["disturbances"]["fail_reads"] > 0
