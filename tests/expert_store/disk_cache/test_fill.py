"""The rest of a source is read while nothing demands the link."""

from __future__ import annotations

import fcntl
import threading
from pathlib import Path

import pytest

from expert_store.disk_cache import fill as fill_module
from expert_store.disk_cache.cached_source import CachedSource
from expert_store.disk_cache.disk_cache import DiskCache
from expert_store.disk_cache.fill import Fill, FillProgress, Span
from tests.expert_store.disk_cache.test_cached_source import CONTENT, CountedSource, read

SECONDS = 30.0


@pytest.fixture
def source() -> CountedSource:
    return CountedSource()


@pytest.fixture
def cached(source: CountedSource, tmp_path: Path) -> CachedSource:
    found = CachedSource(source, DiskCache(tmp_path))
    found.open()
    return found


def run_to_the_end(cached: CachedSource, order: tuple[Span, ...] = ()) -> Fill:
    is_complete = threading.Event()
    fill = Fill([cached], lambda: order, lambda _: is_complete.set())
    fill.start()
    assert is_complete.wait(SECONDS)
    fill.stop()
    return fill


def test_what_is_wanted_comes_first_and_then_the_rest_once(
    source: CountedSource, cached: CachedSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fill_module, "NUM_THREADS", 1)
    monkeypatch.setattr(fill_module, "MIN_CHUNK_BYTES", 1_000_000)
    read(cached.opened, (0, 100_000))
    fill = run_to_the_end(cached, ((cached, 900_000, 950_000), (cached, 300_000, 310_000)))
    assert source.reads[1:3] == [(900_000, 950_000), (300_000, 310_000)]
    assert sum(end - begin for begin, end in source.reads) == len(CONTENT)
    assert fill.progress() == (len(CONTENT), len(CONTENT), 0.0, "complete", None)
    source.is_away = True
    read(cached.opened, (0, len(CONTENT)))


def test_nothing_is_read_while_a_read_is_waited_for(source: CountedSource, cached: CachedSource) -> None:
    fill = Fill([cached])
    with cached.cache.gate.demand():
        fill.start()
        threading.Event().wait(0.2)
        assert not source.reads
    fill.stop()


def test_it_goes_on_when_a_source_that_was_away_is_back(
    source: CountedSource, cached: CachedSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fill_module, "RETRY_SECONDS", 0.01)
    source.is_away = True
    is_complete = threading.Event()
    fill = Fill([cached], on_complete=lambda _: is_complete.set())
    fill.start()
    while fill.progress().state != "waiting":
        assert not is_complete.wait(0.01)
    source.is_away = False
    assert is_complete.wait(SECONDS)
    fill.stop()


def test_a_fill_that_was_stopped_lets_another_process_fill(cached: CachedSource, tmp_path: Path) -> None:
    run_to_the_end(cached)
    with (tmp_path / fill_module.LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_no_time_is_promised_while_it_waits_and_the_reason_is_told(source: CountedSource, tmp_path: Path) -> None:
    cached = CachedSource(source, DiskCache(tmp_path, 500_000))
    cached.open()
    told: list[FillProgress] = []
    fill = Fill([cached], tell=told.append)
    fill.progress()
    read(cached.opened, (0, 400_000))
    expected = (400_000, len(CONTENT), None, "waiting", "the disk has no room for more")
    assert fill.progress() == expected
    fill.start()
    while not told:
        threading.Event().wait(0.01)
    fill.stop()
    assert fill.progress() == told[0] == expected


def test_it_drops_nothing_to_make_room(source: CountedSource, tmp_path: Path) -> None:
    cached = CachedSource(source, DiskCache(tmp_path, 500_000))
    cached.open()
    read(cached.opened, (0, 400_000))
    fill = Fill([cached])
    fill.start()
    while fill.progress().state != "waiting":
        threading.Event().wait(0.01)
    fill.stop()
    assert cached.holds(0, 400_000)


def test_one_process_fills_a_cache_that_several_share(
    source: CountedSource, cached: CachedSource, tmp_path: Path
) -> None:
    fill = Fill([cached])
    with (tmp_path / fill_module.LOCK).open("w") as file:  # as another process holds it
        fcntl.flock(file, fcntl.LOCK_EX)
        read(CachedSource(source, DiskCache(tmp_path)).open(), (0, 1000))
        fill.start()
        threading.Event().wait(0.2)
        assert source.reads == [(0, 1000)]
        assert fill.progress() == (1000, len(CONTENT), None, "waiting", "another server completes it")
    fill.stop()
