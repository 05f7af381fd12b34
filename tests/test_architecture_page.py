"""Pages about the code name files that exist, and the ways through the code stand in them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/architecture.md").read_text("utf-8")
WAYS = PAGE.partition("\n## Four ways through the code\n")[2].partition("\n## ")[0]
HOPS = re.findall(r"^\| (.*`.*) \| (.*`.*) \|$", WAYS, re.MULTILINE)


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_every_path_exists(page: str) -> None:
    folders = "benchmarks|client|docker|expert_store|greenroom|server|tests|training"
    paths = re.findall(rf"`((?:{folders})/[\w./]*)`", (ROOT / page).read_text("utf-8"))
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(("hop", "where"), HOPS, ids=[hop for hop, _ in HOPS])
def test_names_of_a_hop_stand_in_its_files(hop: str, where: str) -> None:
    folder, words = ROOT, set[str]()
    for path in re.findall(r"`([^`]+)`", where):
        file = ROOT / path if "/" in path else folder / path  # a name alone stands for a file beside the last one
        words |= set(re.findall(r"\w+", file.read_text("utf-8")))
        folder = file.parent
    names = {name for part in re.findall(r"`(\w[\w.]*)`", hop) for name in part.split(".")}
    assert names <= words
