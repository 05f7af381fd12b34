"""The tests that CI leaves out exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.nightly import TRIALS, sweeps

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("entry", [*TRIALS, *sweeps()])
def test_an_entry_names_a_test(entry: str) -> None:
    path, *names = entry.partition("[")[0].split("::")
    text = "" if (ROOT / path).is_dir() else (ROOT / path).read_text("utf-8")
    assert [name for name in names if not re.search(rf"\b{name}\b", text)] == []
