"""The tests and families that CI takes or leaves out exist."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

import pytest

from tests.card.checkpoints import CHECKPOINTS
from tests.families import FAMILIES
from tests.native_families import NATIVE_FAMILIES
from tests.nightly import FORMATS_ON_CARD, IN_ENGINE, NAMED, ON_CARD, TRIALS, WITH_IMAGES, sweeps
from tests.vision import VISIONS

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("entry", [*TRIALS, *sweeps()])
def test_an_entry_names_a_test(entry: str) -> None:
    path, *names = entry.partition("[")[0].split("::")
    text = "" if (ROOT / path).is_dir() else (ROOT / path).read_text("utf-8")
    assert [name for name in names if not re.search(rf"\b{name}\b", text)] == []


@pytest.mark.parametrize(
    ("chosen", "known"),
    [
        (NAMED, NATIVE_FAMILIES),
        (IN_ENGINE, FAMILIES),
        (WITH_IMAGES, VISIONS),
        ([*ON_CARD, *FORMATS_ON_CARD], CHECKPOINTS),
    ],
    ids=["of each kind", "in the engine", "with images", "on a card"],
)
def test_what_ci_takes_is_there(chosen: Collection[str], known: Collection[str]) -> None:
    assert set(chosen) <= set(known)


@pytest.mark.parametrize("entry", sweeps())
def test_ci_runs_a_case_of_each_test_that_it_runs_in_part(request: pytest.FixtureRequest, entry: str) -> None:
    items = request.session.items
    if not any(item.nodeid.startswith(entry.partition("::")[0]) for item in items):
        pytest.skip("its file was not collected")
    assert any(item.nodeid.partition("[")[0] == entry for item in items)
