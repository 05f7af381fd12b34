"""Two checkouts measured by turns: what is compared, and flags that can not be used."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import before_after


def test_a_figure_is_compared_within_its_turn() -> None:
    found = [{"before": {"us": 2.0}, "after": {"us": 1.0}}, {"before": {"us": 8.0}, "after": {"us": 6.0}}]
    assert before_after.compared(found) == {"us": {"before": 5.0, "after": 3.5, "ratio": 0.625}}


def test_who_is_measured_first_changes_from_turn_to_turn() -> None:
    asked: list[str] = []
    before_after.turns({side: lambda side=side: asked.append(side) or {} for side in before_after.SIDES}, 2)  # type: ignore[misc,func-returns-value]
    assert asked == ["before", "after", "after", "before"]


def test_flags_of_the_store_are_read_before_either_side_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = Path(before_after.__file__).parents[1]
    monkeypatch.setattr(before_after, "compare_stores", lambda *_: pytest.fail("a side ran"))
    monkeypatch.setattr(sys, "argv", ["before_after", "store", str(here), "--", "--folder", str(tmp_path / "absent")])
    with pytest.raises(SystemExit):
        before_after.main()
    assert "absent is no folder; make it first" in capsys.readouterr().err
