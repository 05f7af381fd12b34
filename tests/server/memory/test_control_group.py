"""Limits of control groups, in the kernel's two interfaces, on the host and in a container."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.memory.control_group import MemoryLimit, memory_limit, memory_pressure, processor_limit

HYBRID = "4:memory:/outer/inner\n2:cpu,cpuacct:/outer\n0::/\n"


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("cgroup__procs", *files):
        (folder / name.replace("__", ".")).write_text(files.get(name, ""))


@pytest.fixture
def membership(tmp_path: Path) -> Path:
    return tmp_path / "membership"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def test_the_tightest_of_nested_groups_counts_and_page_cache_does_not(root: Path, membership: Path) -> None:
    membership.write_text("0::/service/worker\n")
    write(root)
    cached = "anon 1\ninactive_file 90\nactive_file 30\nfile_mapped 20\n"
    write(root / "service", memory__max="1000", memory__current="700", memory__stat=cached)
    write(root / "service/worker", memory__max="max", memory__current="600", cpu__max="150000 100000\n")
    assert memory_limit(root, membership) == MemoryLimit(1000, 600)
    assert processor_limit(root, membership) == 1.5


def test_the_first_version_is_read_too(root: Path, membership: Path) -> None:
    membership.write_text(HYBRID)
    memory = root / "memory"
    write(memory, memory__limit_in_bytes="9223372036854771712", memory__usage_in_bytes="5")
    write(memory / "outer", memory__limit_in_bytes="2000", memory__usage_in_bytes="50")
    write(
        memory / "outer/inner",
        memory__limit_in_bytes="900",
        memory__usage_in_bytes="800",
        memory__stat="total_inactive_file 300\n",
    )
    write(root / "cpu/outer", cpu__cfs_quota_us="50000", cpu__cfs_period_us="100000")
    write(root / "cpu", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    limit = memory_limit(root, membership)
    assert limit == MemoryLimit(900, 500)
    assert limit.free_bytes == 400
    assert processor_limit(root, membership) == 0.5


def test_a_container_that_sees_its_own_group_as_the_root_finds_it_whatever_its_path_outside(
    root: Path, membership: Path
) -> None:
    membership.write_text("0::/docker/0123\n")
    write(root, memory__max="1000", memory__current="1200", cpu__max="max 100000")
    limit = memory_limit(root, membership)
    assert limit is not None
    assert limit.free_bytes == 0
    assert processor_limit(root, membership) is None


def test_without_groups_there_is_no_limit(root: Path, membership: Path) -> None:
    assert memory_limit(root, membership) is None
    membership.write_text(HYBRID)
    assert memory_limit(root, membership) is None
    assert processor_limit(root, membership) is None


def test_pressure_is_read_from_the_innermost_group_that_has_it(root: Path, membership: Path) -> None:
    membership.write_text("0::/service/worker\n")
    write(root)
    line = "some avg10={} avg60=1.00 avg300=0.00 total=5\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
    write(root / "service", memory__pressure=line.format("12.50"), memory__current="0")
    assert memory_pressure(root, membership) == 12.5
    write(root / "service/worker", memory__pressure=line.format("3.00"), memory__current="0")
    assert memory_pressure(root, membership) == 3.0


def test_pressure_of_the_machine_is_none_of_a_group(root: Path, membership: Path) -> None:
    membership.write_text("0::/\n")
    write(root, memory__pressure="some avg10=50.00 avg60=1.00 avg300=0.00 total=5\n")
    assert memory_pressure(root, membership) is None


def test_a_kernel_without_pressure_files_gives_none(root: Path, membership: Path) -> None:
    membership.write_text(HYBRID)
    write(root / "memory" / "outer/inner")
    assert memory_pressure(root, membership) is None
