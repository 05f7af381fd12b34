"""A source with a cache on a disk in front of it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from expert_store.disk_cache import delayed_writer
from expert_store.disk_cache.cache_file import CacheFile
from expert_store.disk_cache.cached_source import CachedSource, OpenCachedSource
from expert_store.disk_cache.disk_cache import DiskCache
from expert_store.errors import SourceChangedError, SourceUnreadableError
from expert_store.sources.base import Bytes, Piece, SourceIdentity

SECONDS = 30.0
CONTENT = np.random.default_rng(0).integers(0, 256, 1_000_000, np.uint8)


class CountedSource:
    """A source in memory that counts what is read, and can be away."""

    def __init__(self) -> None:
        self.name = self.short_name = "counted"
        self.version = "1"
        self.reads: list[tuple[int, int]] = []
        self.is_away = False

    def open(self, *, is_direct: bool = True) -> CountedSource:
        del is_direct
        if self.is_away:
            raise SourceUnreadableError(self.name, "it is away")
        return self

    @property
    def identity(self) -> SourceIdentity:
        return SourceIdentity("counted", (self.name, self.version), len(CONTENT))

    def has_changed(self) -> bool:
        return False

    def refuse_changed(self) -> None:
        pass

    def read(self, pieces: Sequence[Piece], scratch: Bytes | None = None) -> None:
        del scratch
        if self.is_away:
            raise SourceUnreadableError(self.name, "it is away")
        for piece in pieces:
            self.reads.append((piece.offset, piece.end))
            piece.target[:] = CONTENT[piece.offset : piece.end]

    def close(self) -> None:
        pass


@pytest.fixture
def source() -> CountedSource:
    return CountedSource()


def opened(source: CountedSource, folder: Path, max_bytes: int | None = None) -> OpenCachedSource:
    return CachedSource(source, DiskCache(folder, max_bytes)).open()


def read(opened: OpenCachedSource, *extents: tuple[int, int]) -> None:
    pieces = [Piece(begin, np.zeros(end - begin, np.uint8)) for begin, end in extents]
    opened.read(pieces)
    opened.cache.writer.flush()
    for piece in pieces:
        assert np.array_equal(piece.target, CONTENT[piece.offset : piece.end])


def test_what_was_read_is_read_once_by_all_caches_of_a_folder(source: CountedSource, tmp_path: Path) -> None:
    first, second = opened(source, tmp_path), opened(source, tmp_path)
    read(first, (10, 1000), (500_000, 700_000))
    source.is_away = True
    read(second, (10, 1000), (500_100, 600_000))
    assert second.holds(500_000, 700_000)
    with pytest.raises(SourceUnreadableError, match="it is away"):
        read(second, (10, 1001))


def test_only_what_is_missing_is_read(source: CountedSource, tmp_path: Path) -> None:
    cached = opened(source, tmp_path)
    read(cached, (1000, 2000), (3000, 4000))
    source.reads.clear()
    read(cached, (500, 5000))
    assert source.reads == [(500, 1000), (2000, 3000), (4000, 5000)]


def test_damaged_bytes_are_read_from_the_source_again(source: CountedSource, tmp_path: Path) -> None:
    read(opened(source, tmp_path), (0, 50_000))
    (path,) = tmp_path.glob("*.data")
    with path.open("r+b") as file:
        file.seek(40_000)
        file.write(b"damaged")
    cached = opened(source, tmp_path)
    read(cached, (0, 50_000))
    source.is_away = True
    read(cached, (0, 50_000))


def test_damaged_bytes_are_replaced_for_all_caches_of_a_folder(source: CountedSource, tmp_path: Path) -> None:
    read(opened(source, tmp_path), (0, 50_000))
    other = opened(source, tmp_path)
    (path,) = tmp_path.glob("*.data")
    path.write_bytes(bytes(len(CONTENT)))
    read(opened(source, tmp_path), (10, 20))
    source.is_away = True
    read(other, (10, 20))
    assert not other.holds(0, 50_000)


def test_a_part_of_a_record_at_the_end_of_the_log_is_cut_off(source: CountedSource, tmp_path: Path) -> None:
    read(opened(source, tmp_path), (0, 100))
    (path,) = tmp_path.glob("*.extents")
    with path.open("ab") as file:
        file.write(b"half")
    read(opened(source, tmp_path), (200, 300))
    source.is_away = True
    read(opened(source, tmp_path), (0, 100), (200, 300))


def test_a_source_that_was_away_at_the_start_is_read_once_it_is_back(source: CountedSource, tmp_path: Path) -> None:
    read(opened(source, tmp_path), (0, 100))
    source.is_away = True
    cached = opened(source, tmp_path)
    read(cached, (0, 100))
    with pytest.raises(SourceUnreadableError, match="it is away"):
        read(cached, (0, 101))
    source.is_away = False
    read(cached, (0, 200))


def test_a_source_that_comes_back_as_another_one_is_refused(source: CountedSource, tmp_path: Path) -> None:
    read(opened(source, tmp_path), (0, 100))
    source.is_away = True
    cached = opened(source, tmp_path)
    source.is_away, source.version = False, "2"
    with pytest.raises(SourceChangedError, match="is not the one that the cache has; restart this server"):
        read(cached, (0, 200))
    assert cached.has_changed()


def test_a_damaged_note_about_a_source_counts_as_none(source: CountedSource, tmp_path: Path) -> None:
    read(opened(source, tmp_path), (0, 100))
    (note,) = tmp_path.glob("*.about")
    note.write_text('{"kind": "counted", "version"')
    read(opened(source, tmp_path), (0, 100))
    note.write_text("[1]")
    source.is_away = True
    with pytest.raises(SourceUnreadableError, match="it is away"):
        opened(source, tmp_path)


def test_another_version_has_a_file_of_its_own(source: CountedSource, tmp_path: Path) -> None:
    read(opened(source, tmp_path), (0, 100))
    source.version = "2"
    assert not opened(source, tmp_path).holds(0, 100)


def test_a_source_without_a_version_is_not_kept(source: CountedSource, tmp_path: Path) -> None:
    source.version = ""
    read(opened(source, tmp_path), (0, 100))
    assert not list(tmp_path.iterdir())


def test_a_full_cache_drops_what_was_not_used_for_the_longest_time(source: CountedSource, tmp_path: Path) -> None:
    cached = opened(source, tmp_path, 400_000)
    for begin in (0, 100_000, 200_000, 0, 300_000, 400_000):
        read(cached, (begin, begin + 98_304))
    assert cached.holds(0, 98_304)
    assert not cached.holds(100_000, 198_304)
    assert sum(path.stat().st_blocks * 512 for path in tmp_path.glob("*.data")) <= 420_000


def test_a_full_cache_drops_what_is_to_be_kept_last(source: CountedSource, tmp_path: Path) -> None:
    cached = opened(source, tmp_path, 300_000)
    assert cached.file is not None
    cached.file.is_kept = lambda _, end: end <= 98_304
    for begin in (0, 100_000, 200_000, 300_000):
        read(cached, (begin, begin + 98_304))
    assert cached.holds(0, 98_304)
    assert not cached.holds(100_000, 198_304)


def test_a_read_returns_before_its_bytes_are_stored_and_the_next_has_them(
    source: CountedSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached, disk = opened(source, tmp_path), threading.Event()
    store = CacheFile.store
    monkeypatch.setattr(CacheFile, "store", lambda *given: disk.wait(SECONDS) and store(*given))
    target = np.empty(1000, np.uint8)
    cached.read([Piece(500, target)])
    source.is_away = True
    cached.read([Piece(600, target[:100])])
    assert np.array_equal(target[:100], CONTENT[600:700])
    assert not opened(source, tmp_path).holds(500, 1500)
    disk.set()
    cached.close()
    read(opened(source, tmp_path), (500, 1500))


def test_who_reads_more_than_may_wait_to_be_stored_stores_it(
    source: CountedSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delayed_writer, "MAX_UNWRITTEN_BYTES", 1000)
    cached, disk, stored_by = opened(source, tmp_path), threading.Event(), []
    store = CacheFile.store

    def slow_store(file: CacheFile, begin: int, data: Bytes) -> None:
        stored_by.append(threading.current_thread().name)
        if stored_by[-1] == "cache-writer":
            disk.wait(SECONDS)
        store(file, begin, data)

    monkeypatch.setattr(CacheFile, "store", slow_store)
    cached.read([Piece(0, np.empty(1000, np.uint8))])
    cached.read([Piece(1000, np.empty(1000, np.uint8))])
    assert threading.current_thread().name in stored_by
    disk.set()
    cached.close()


def test_files_that_no_process_uses_make_room_first(source: CountedSource, tmp_path: Path) -> None:
    (tmp_path / "old.data").write_bytes(bytes(300_000))
    cached = opened(source, tmp_path, 400_000)
    read(cached, (0, 200_000))
    assert not (tmp_path / "old.data").exists()
    assert cached.holds(0, 200_000)
