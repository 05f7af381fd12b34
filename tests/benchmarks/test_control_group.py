"""Control groups of both versions, in folders that look like them."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.comparison.control_group import ControlGroup, ControlGroupError


def test_version_1_is_taken_where_it_has_the_memory_controller(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/memory.limit_in_bytes").write_text("9223372036854771712")
    ControlGroup(1 << 30, tmp_path)
    (limit,) = (tmp_path / "memory").glob("*/memory.limit_in_bytes")
    assert limit.read_text() == str(1 << 30)


def test_version_2_hands_the_memory_controller_down(tmp_path: Path) -> None:
    control = tmp_path / "cgroup.subtree_control"
    control.write_text("cpu io")
    ControlGroup(1 << 30, tmp_path)
    (limit,) = tmp_path.glob("*/memory.max")
    assert (control.read_text(), limit.read_text()) == ("+memory", str(1 << 30))


def test_machine_without_control_groups_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ControlGroupError, match="no memory control group"):
        ControlGroup(None, tmp_path / "nowhere")
