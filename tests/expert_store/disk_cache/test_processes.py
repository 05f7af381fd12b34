"""A cache whose processes are killed, share it, or run on a full disk gives the bytes of the source."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from expert_store.disk_cache.disk_cache import DiskCache
from expert_store.sources.file import FileSource
from tests.needs import need_mounts

READER = [sys.executable, "-m", "tests.expert_store.disk_cache.random_reader"]
NUM_BYTES = 8_000_000

pytestmark = pytest.mark.slow


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    np.random.default_rng(0).integers(0, 256, NUM_BYTES, np.uint8).tofile(path)
    return path


def result(process: subprocess.Popen[str]) -> tuple[int, int]:
    """Return the bytes that a reader found in the cache, and those that it read from the source."""
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    hit, remote = out.splitlines()[-1].split()
    return int(hit), int(remote)


def start(*arguments: object, wrapper: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [*wrapper, *READER, *map(str, arguments)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_what_was_stored_before_a_kill_is_used_and_right(tmp_path: Path, source: Path) -> None:
    for number in range(4):
        reader = start(source, tmp_path / "cache")
        assert reader.stdout is not None
        assert reader.stdout.readline() == "open\n"
        time.sleep(0.03 * number)
        reader.kill()
        reader.communicate()
    file = DiskCache(tmp_path / "cache").file(FileSource(source).open().identity)
    assert file is not None
    assert file.log.num_bytes > 0
    hit, _ = result(start(source, tmp_path / "cache", 0, 50))
    assert hit > 0


def test_two_processes_share_what_they_read_within_a_size(tmp_path: Path, source: Path) -> None:
    size = NUM_BYTES // 2
    readers = [start(source, tmp_path / "cache", size, 150) for _ in range(2)]
    for reader in readers:
        hit, remote = result(reader)
        assert min(hit, remote) > 0
    stored = sum(path.stat().st_blocks * 512 for path in (tmp_path / "cache").glob("*.data"))
    assert stored < 1.2 * size


SMALL_DISK = 'mount -t tmpfs -o size=3m,mode=0700 tmpfs "$0"; exec "$@"'


def test_on_a_full_disk_the_cache_shrinks_and_reads_go_on(tmp_path: Path, source: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    namespace = ("unshare", "--map-root-user", "--mount")
    need_mounts(*namespace, "mount", "-t", "tmpfs", "tmpfs", str(disk))
    reader = start(source, disk, 0, 100, wrapper=(*namespace, "sh", "-euc", SMALL_DISK, str(disk)))
    hit, remote = result(reader)
    assert hit > 0
    assert remote > 3 << 20
