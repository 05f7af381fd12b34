"""Control groups of both cgroup versions, in simulated folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.comparison.control_group import ControlGroup, ControlGroupError, cached_share


def test_version_1_is_used_if_it_has_the_memory_controller(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/memory.limit_in_bytes").write_text("9223372036854771712")
    ControlGroup(1 << 30, tmp_path)
    (limit,) = (tmp_path / "memory").glob("*/memory.limit_in_bytes")
    assert limit.read_text() == str(1 << 30)


def test_version_2_delegates_the_memory_controller(tmp_path: Path) -> None:
    control = tmp_path / "cgroup.subtree_control"
    control.write_text("cpu io")
    ControlGroup(1 << 30, tmp_path)
    (limit,) = tmp_path.glob("*/memory.max")
    assert (control.read_text(), limit.read_text()) == ("+memory", str(1 << 30))


@pytest.mark.parametrize(
    ("base", "limit", "usage", "kills"),
    [
        (
            "memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            ("memory.oom_control", "under_oom 0\noom_kill 2\n"),
        ),
        (".", "memory.max", "memory.current", ("memory.events", "max 7\noom_kill 2\n")),
    ],
)
def test_used_bytes_exclude_page_cache_and_kills_are_counted(
    base: str, limit: str, usage: str, kills: tuple[str, str], tmp_path: Path
) -> None:
    (tmp_path / base).mkdir(exist_ok=True)
    (tmp_path / base / limit if base == "memory" else tmp_path / "cgroup.subtree_control").write_text("memory")
    group = ControlGroup(1 << 30, tmp_path)
    (folder,) = (found.parent for found in tmp_path.glob(f"{base}/*/{limit}"))
    (folder / usage).write_text("1000\n")
    (folder / "memory.stat").write_text("shmem 50\ninactive_file 200\nactive_file 100\n")
    (folder / kills[0]).write_text(kills[1])
    assert (group.used_bytes(), group.num_kills()) == (700, 2)


def test_machine_without_control_groups_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ControlGroupError, match="no memory control group"):
        ControlGroup(None, tmp_path / "nowhere")


def test_file_that_was_just_written_is_in_the_page_cache(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 16))
    with path.open("rb") as file:
        assert cached_share(file.fileno()) == 1.0
