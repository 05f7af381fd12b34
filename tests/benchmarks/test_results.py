"""Every file of results follows the schema of benchmarks/results/README.md."""

from __future__ import annotations

import datetime as dt
import json
import re
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, model_validator

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks/results"
MACHINES = json.loads((FOLDER / "machines.json").read_text("utf-8"))
NAMED = re.compile(r"benchmarks/results/[\w./-]+\.json")
Text = Annotated[str, Field(min_length=1, pattern=r"\S")]
Number = int | float


class Strict(BaseModel):
    """A model that takes no unknown field and converts nothing."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Table(Strict):
    """Columns with their units, and rows of as many cells."""

    columns: list[str] = Field(min_length=2)
    rows: list[list[Number | str | list[Number | None] | None]] = Field(min_length=1)

    @model_validator(mode="after")
    def has_a_cell_for_each_column(self) -> Table:
        """Refuse a row that is too short or too long."""
        lengths = {len(row) for row in self.rows}
        assert lengths == {len(self.columns)}, f"{len(self.columns)} columns, rows of {sorted(lengths)} cells"
        return self


class Measurement(Strict):
    """One part of a file."""

    subject: Text | None = None
    notes: list[Text] = Field(default=[], min_length=1)
    table: Table | None = None
    output: dict[str, Any] | None = None

    @model_validator(mode="after")
    def holds_something(self) -> Measurement:
        """Refuse a subject without a result."""
        assert self.notes or self.table or self.output, "a measurement needs notes, a table or an output"
        return self


class Result(Strict):
    """A file of results."""

    title: Text
    date: Annotated[dt.date, Field(strict=False)]
    machine: Text
    commits: list[Annotated[str, Field(pattern=r"^[0-9a-f]{7,40}$")]] = Field(default=[], min_length=1)
    commands: list[Text] = Field(default=[], min_length=1)
    measurements: list[Measurement] = Field(min_length=1)


def checked(path: Path) -> Result:
    """Read a file of results."""
    result = Result.model_validate(json.loads(path.read_text("utf-8")))
    assert result.machine in MACHINES, f"{result.machine} is not in machines.json"
    assert path.parent.name == f"{result.date}-{result.machine}"
    return result


def test_results_that_code_names_exist() -> None:
    root = FOLDER.parents[1]
    files = [path for name in ("expert_store", "server", "client") for path in (root / name).rglob("*.py")]
    named = {found for path in files for found in NAMED.findall(path.read_text("utf-8"))}
    assert named
    assert [path for path in sorted(named) if not (root / path).exists()] == []


FOLDERS = sorted(path for path in FOLDER.iterdir() if path.is_dir())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_results_of_a_folder_follow_the_schema(folder: Path) -> None:
    files = list(folder.iterdir())
    assert files
    assert [path.name for path in files if path.suffix != ".json"] == []
    for path in files:
        try:
            checked(path)
        except (AssertionError, ValueError) as error:
            pytest.fail(f"{path.name}: {error}")


@pytest.mark.parametrize(
    "change",
    [
        {"machine": "abacus"},
        {"date": "2026-11-30"},
        {"speed": 3},
        {"measurements": [{"subject": "decoding"}]},
        {"measurements": [{"table": {"columns": ["family", "ms"], "rows": [["olmoe"]]}}]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_file_that_breaks_the_schema_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    good = {"title": "one", "date": "2026-12-01", "machine": "epyc", "measurements": [{"notes": ["3 ms"]}]}
    path = tmp_path / "2026-12-01-epyc/one.json"
    path.parent.mkdir()
    path.write_text(json.dumps(good))
    checked(path)
    path.write_text(json.dumps(good | change))
    with pytest.raises((AssertionError, ValueError)):
        checked(path)
