"""The corpora of the parsers, and a short fuzzing guided by coverage."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.parsers.targets import CORPUS, TARGETS

SECONDS, SEED = 4, 20
INPUTS = [pytest.param(path, id=f"{path.parent.name}/{path.name}") for path in sorted(CORPUS.glob("*/*"))]


@pytest.mark.parametrize("path", INPUTS)
def test_a_parser_reads_or_refuses_its_corpus(path: Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())


@pytest.mark.timeout(300)
def test_no_parser_fails_in_a_short_fuzzing(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="pip install atheris (x86-64 Linux)")
    command = [sys.executable, "-m", "tests.fuzz.parsers", "--seconds", str(SECONDS), "--seed", str(SEED)]
    done = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
