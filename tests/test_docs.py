"""Links of the documentation lead somewhere; its index is complete; flags and metrics that it names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from server.settings import ServeSettings, flag_name
from tests.made_pages import COMMANDS, MIGRATING, commands_page, migrating_page

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks/results/README.md",
]
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
# Flags of our other commands, of docker and of rsync.
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
    "--once",
}
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def text(page: Path) -> str:
    """A page without what stands in fences."""
    return FENCE.sub("", page.read_text("utf-8"))


def anchors(page: Path) -> set[str]:
    """Return GitHub's anchors of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", text(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for path, anchor in LINK.findall(text(page)):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{path} is not there"
        if anchor:
            assert anchor in anchors(target), f"{path}#{anchor}: there is no such heading"


def test_index_of_the_documentation_names_every_page() -> None:
    docs = ROOT / "docs"
    named = {path for path, _ in LINK.findall(text(docs / "README.md"))}
    assert {page.name for page in docs.glob("*.md")} - {"README.md"} <= named


USER_PAGES = [
    "README.md",
    "docs/faq.md",
    "docs/features.md",
    "docs/operations.md",
    "docs/security.md",
    "docs/sizing.md",
    "docs/tuning.md",
]


@pytest.mark.parametrize("name", USER_PAGES)
def test_flags_that_users_are_told_exist(name: str) -> None:
    known = {flag_name(setting) for setting in ServeSettings.model_fields} | OTHER_FLAGS
    assert set(re.findall(r"`(--[a-z-]+)", text(ROOT / name))) <= known


def test_flags_to_which_users_of_other_servers_are_sent_exist() -> None:
    known = {flag_name(setting) for setting in ServeSettings.model_fields} | OTHER_FLAGS
    ours = re.findall(r"^\| [^|]+ \| ([^|]+) \|", text(ROOT / "docs/migrating.md"), re.MULTILINE)
    told = set(re.findall(r"--[a-z][a-z-]+", " ".join(ours)))
    assert "--max-running-requests" in told
    assert told <= known


def test_page_of_commands_is_made_from_the_parser() -> None:
    assert COMMANDS.read_text("utf-8") == commands_page(), "run python -m tests.made_pages"


def test_tables_about_other_servers_are_those_that_the_command_line_explains() -> None:
    page = MIGRATING.read_text("utf-8")
    assert page == migrating_page(page), "run python -m tests.made_pages"


def test_model_types_told_by_name_are_those_of_served_families() -> None:
    _, names = text(ROOT / "docs/README.md").split("## Models by name")
    told = set(re.findall(r"`([a-z0-9_-]+)`", " ".join(re.findall(r"\| ([^|]+) \|$", names, re.MULTILINE)))) - {
        "model_type"
    }
    served = text(ROOT / "docs/models.md").partition("## Quantised checkpoints")[0]
    assert "qwen3_moe" in told
    assert told <= set(re.findall(r"^\| `([a-z0-9_-]+)`", served, re.MULTILINE))


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
