"""A process that hangs while it holds a lock of a cache costs the cache, and no read."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from expert_store.disk_cache import cache_file, disk_cache, extent_log
from expert_store.disk_cache.cached_source import CachedSource, OpenCachedSource
from expert_store.disk_cache.disk_cache import DiskCache
from tests.expert_store.disk_cache.test_cached_source import CountedSource, opened, read

HOLDER = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> CountedSource:
    monkeypatch.setattr(extent_log, "LOCK_SECONDS", 0.01)
    monkeypatch.setattr(cache_file, "SHORT_LOCK_SECONDS", 0.01)
    return CountedSource()


@contextmanager
def held(folder: Path, suffix: str) -> Iterator[None]:
    """Have another process hold the lock of a file in a cache."""
    (path,) = folder.glob(f"*{suffix}")
    process = subprocess.Popen([sys.executable, "-Sc", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline()
    try:
        yield
    finally:
        process.communicate()


@pytest.fixture
def cached(source: CountedSource, tmp_path: Path) -> OpenCachedSource:
    found = opened(source, tmp_path)
    read(found, (0, 1000))
    return found


def test_reads_go_on_from_cache_and_source(cached: OpenCachedSource, source: CountedSource, tmp_path: Path) -> None:
    with held(tmp_path, ".extents"):
        read(cached, (500, 5000))
        read(cached, (0, 1000), (6000, 7000))
    assert source.reads[1:] == [(1000, 5000), (6000, 7000)]


def test_it_is_counted_and_logged_once_with_what_to_do(
    cached: OpenCachedSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(disk_cache, "OFF_SECONDS", 0.0)
    with held(tmp_path, ".extents"):
        read(cached, (2000, 3000))
        read(cached, (4000, 5000))
    assert cached.cache.failures()["locked"] == 2
    (line,) = caplog.messages
    assert line.endswith("0.01 s; find it with `lslocks`, and end it")


def test_bytes_are_stored_again_once_the_lock_is_free(
    cached: OpenCachedSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(disk_cache, "OFF_SECONDS", 0.0)
    with held(tmp_path, ".extents"):
        read(cached, (2000, 3000))
    assert not cached.holds(2000, 3000)
    read(cached, (2000, 3000))
    assert cached.holds(2000, 3000)
    assert caplog.messages[-1] == f"bytes are stored in {tmp_path} again"


def test_a_read_of_damaged_bytes_takes_no_lock(cached: OpenCachedSource, tmp_path: Path) -> None:
    (path,) = tmp_path.glob("*.data")
    path.write_bytes(bytes(path.stat().st_size))
    assert cached.file is not None
    with held(tmp_path, ".extents"):
        assert cached.file.read(0, np.empty(1000, np.uint8)) == [(0, 1000)]
    assert cached.cache.failures() == {"locked": 0, "disk": 0, "refused": 0, "damaged": 1}


def test_counts_of_reads_wait_for_nobody_who_makes_room(source: CountedSource, tmp_path: Path) -> None:
    cached = opened(source, tmp_path, 400_000)
    read(cached, (0, 390_000))
    with held(tmp_path, ".extents"):
        read(cached, (390_000, 420_000))
    assert cached.cache.failures()["locked"] == 1
    assert cached.cache.remote_bytes == 420_000


def test_a_file_that_is_about_to_be_removed_is_used_once_it_can_be(
    cached: OpenCachedSource, source: CountedSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del cached
    (path,) = tmp_path.glob("*.data")
    path.rename(tmp_path / "other.data")  # no process has locked this one
    path.write_bytes(b"")
    monkeypatch.setattr(disk_cache, "OFF_SECONDS", 0.0)
    second = CachedSource(source, DiskCache(tmp_path)).open()
    (tmp_path / "other.data").unlink()
    with held(tmp_path, ".data"):
        read(second, (2000, 3000))
        assert not second.holds(2000, 3000)
    read(second, (2000, 3000))
    assert second.holds(2000, 3000)


def test_the_hung_process_is_told_as_the_reason(cached: OpenCachedSource, tmp_path: Path) -> None:
    with held(tmp_path, ".extents"):
        read(cached, (2000, 3000))
    assert str(cached.cache.lack(1)).startswith("a process holds the lock of")
