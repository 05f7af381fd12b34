"""Links of the documentation lead somewhere; flags and metrics that it names are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from server.settings import ServeSettings, flag_name

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
# Of other commands of ours, of docker and rsync.
OTHER_FLAGS = {
    "--weights",
    "--trunk",
    "--config",
    "--json",
    "--file",
    "--cpus",
    "--gpus",
    "--memory",
    "--secret",
    "--read-only",
    "--checksum",
}
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def text(page: Path) -> str:
    """A page without what stands in fences."""
    return FENCE.sub("", page.read_text("utf-8"))


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", text(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for path, anchor in LINK.findall(text(page)):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{path} is not there"
        if anchor:
            assert anchor in anchors(target), f"{path}#{anchor}: there is no such heading"


@pytest.mark.parametrize("name", ["operations.md", "security.md", "sizing.md", "tuning.md"])
def test_flags_that_operators_are_told_are_there(name: str) -> None:
    known = {flag_name(setting) for setting in ServeSettings.model_fields} | OTHER_FLAGS
    assert set(re.findall(r"`(--[a-z-]+)", text(ROOT / "docs" / name))) <= known


def test_metrics_and_fields_of_symptoms_are_told_among_all_others() -> None:
    told = set(
        re.findall(r"\w+", (ROOT / "docs/operations.md").read_text("utf-8") + (ROOT / "docs/api.md").read_text("utf-8"))
    )
    named = set(
        re.findall(
            r"`(?:rate\()?((?:engine|expert|kv|num|prefix|queue|first|request)s?_\w+)", text(ROOT / "docs/tuning.md")
        )
    )
    assert named
    assert named <= told
