"""First lines of docstrings say what a thing does or is. Ruff checks their layout."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("benchmarks", "client", "docker", "expert_store", "greenroom", "server", "tests", "training")
FRAGMENT = re.compile(r'^\s*r?"""(?:How|Of|That|What|When|Where|Whether|Which|Who|Why)\b.*', re.MULTILINE)


def test_no_docstring_opens_as_a_fragment() -> None:
    files = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")]
    found = {str(file): FRAGMENT.findall(file.read_text("utf-8")) for file in files}
    assert {file: lines for file, lines in found.items() if lines} == {}
