"""Reading threads: what is demanded goes first, and nothing that was asked for is forgotten."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from expert_store import ExpertCatalog, ExpertKey
from expert_store.arena import HostArena
from expert_store.errors import SourceGoneError, StoreClosedError
from expert_store.io.expert_read import ExpertRead
from expert_store.io.reader import Priority, SourceReader
from expert_store.sources.file import FileSource
from expert_store.sources.open_sources import OpenSources
from tests.expert_store.files import make_catalog

TIMEOUT = 30


class Desk:
    """One reader over real files; its first job can be held in the middle of its read."""

    def __init__(self, catalog: ExpertCatalog, num_threads: int):
        self.catalog = catalog
        self.arena = HostArena(catalog.layout(0), 8, 8)
        self.deaths: list[str] = []
        self.finished: list[tuple[int, Exception | None]] = []
        self.sources, self.reader = OpenSources(catalog.sources), SourceReader(num_threads, self.deaths.append)
        self._ended = threading.Semaphore(0)

    def job(
        self, expert: int, priority: Priority = Priority.DEMAND, *, hold: threading.Event | None = None
    ) -> ExpertRead:
        key = ExpertKey(0, expert)

        def done(error: Exception | None) -> None:
            if hold is not None:
                assert hold.wait(TIMEOUT)
            self.finished.append((expert, error))
            self._ended.release()

        return ExpertRead(key, self.catalog.recipe(key), self.sources, self.arena, expert, done, priority)

    def wait_until_begun(self) -> None:
        """Wait until a thread has taken the only demand."""
        while self.reader._waiting[Priority.DEMAND]:
            threading.Event().wait(0.001)

    def close(self) -> None:
        self.reader.close()
        self.sources.close()

    def wait_for(self, count: int) -> list[int]:
        for _ in range(count):
            assert self._ended.acquire(timeout=TIMEOUT)
        return [expert for expert, _ in self.finished]


@pytest.fixture
def catalog(tmp_path: Path) -> ExpertCatalog:
    return make_catalog(tmp_path, num_layers=1)


@pytest.fixture
def desk(catalog: ExpertCatalog) -> Iterator[Desk]:
    desk = Desk(catalog, 1)
    yield desk
    desk.close()


def test_a_reading_thread_uses_one_of_torchs(desk: Desk) -> None:
    """Also where the environment lets torch have more."""
    seen: list[int] = []
    ended = threading.Event()

    def done(error: Exception | None) -> None:
        assert error is None
        seen.append(torch.get_num_threads())
        ended.set()

    key = ExpertKey(0, 0)
    desk.reader.submit(ExpertRead(key, desk.catalog.recipe(key), desk.sources, desk.arena, 0, done))
    assert ended.wait(TIMEOUT)
    assert seen == [1]


def test_a_demand_overtakes_prefetches_that_wait(desk: Desk) -> None:
    hold = threading.Event()
    desk.reader.submit(desk.job(0, hold=hold))
    desk.reader.submit(desk.job(1, Priority.PREFETCH))
    desk.reader.submit(desk.job(2))
    hold.set()
    assert desk.wait_for(3) == [0, 2, 1]


def test_prefetches_leave_a_thread_to_demands(catalog: ExpertCatalog, monkeypatch: pytest.MonkeyPatch) -> None:
    desk, begun, hold = Desk(catalog, 2), threading.Semaphore(0), threading.Event()

    def held_read(_: object) -> None:
        begun.release()
        assert hold.wait(TIMEOUT)

    for expert in (0, 1):
        ahead = desk.job(expert, Priority.PREFETCH)
        monkeypatch.setattr(ahead, "read", held_read)
        desk.reader.submit(ahead)
    assert begun.acquire(timeout=TIMEOUT)
    has_second_begun = False
    while not desk.reader._changed._waiters and not has_second_begun:  # until the other thread has looked
        has_second_begun = begun.acquire(timeout=0.001)
    try:
        assert not has_second_begun
        desk.reader.submit(desk.job(2))
        assert desk.wait_for(1) == [2]
    finally:
        hold.set()
        desk.close()


def test_a_prefetch_that_somebody_waits_for_becomes_a_demand(desk: Desk) -> None:
    hold = threading.Event()
    wanted = desk.job(2, Priority.PREFETCH)
    desk.reader.submit(desk.job(0, hold=hold))
    desk.reader.submit(desk.job(1, Priority.PREFETCH))
    desk.reader.submit(wanted)
    desk.reader.promote(wanted)
    hold.set()
    assert desk.wait_for(3) == [0, 2, 1]


def test_what_has_not_begun_can_be_called_off(desk: Desk) -> None:
    hold = threading.Event()
    running, waiting, ahead = desk.job(0, hold=hold), desk.job(1), desk.job(2, Priority.PREFETCH)
    for job in (running, waiting, ahead):
        desk.reader.submit(job)
    assert desk.reader.cancel(waiting)
    assert desk.reader.cancel(ahead)
    assert not desk.reader.cancel(waiting)
    hold.set()
    assert desk.wait_for(1) == [0]
    assert not desk.reader.cancel(running)


def test_no_prefetch_is_taken_while_a_demand_waits(desk: Desk) -> None:
    hold = threading.Event()
    assert desk.reader.takes(Priority.PREFETCH)
    desk.reader.submit(desk.job(0, hold=hold))
    desk.reader.submit(desk.job(1))
    assert not desk.reader.takes(Priority.PREFETCH)
    hold.set()
    desk.wait_for(2)
    assert desk.reader.takes(Priority.PREFETCH)


def test_background_reads_wait_for_demands_and_prefetches(desk: Desk) -> None:
    hold = threading.Event()
    desk.reader.submit(desk.job(0, hold=hold))
    desk.reader.submit(desk.job(1, Priority.BACKGROUND))
    desk.reader.submit(desk.job(2, Priority.PREFETCH))
    desk.reader.submit(desk.job(3))
    hold.set()
    assert desk.wait_for(4) == [0, 3, 2, 1]


def test_no_background_read_is_taken_while_a_prefetch_waits(desk: Desk) -> None:
    hold = threading.Event()
    desk.reader.submit(desk.job(0, hold=hold))
    desk.wait_until_begun()
    assert desk.reader.takes(Priority.BACKGROUND)
    desk.reader.submit(desk.job(1, Priority.PREFETCH))
    assert not desk.reader.takes(Priority.BACKGROUND)
    hold.set()
    desk.wait_for(2)


def test_closing_answers_what_has_not_begun(catalog: ExpertCatalog) -> None:
    desk, hold = Desk(catalog, 1), threading.Event()
    desk.reader.submit(desk.job(0, hold=hold))
    desk.wait_until_begun()
    desk.reader.submit(desk.job(1))
    desk.reader.submit(desk.job(2, Priority.PREFETCH))
    closer = threading.Thread(target=desk.reader.close)
    closer.start()
    assert sorted(desk.wait_for(2)) == [1, 2]
    hold.set()
    closer.join(TIMEOUT)
    assert not closer.is_alive()
    errors = dict(desk.finished)
    assert errors[0] is None
    assert isinstance(errors[1], StoreClosedError)
    desk.close()


def num_handles() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_file_that_cannot_be_opened_leaves_no_other_open(catalog: ExpertCatalog, tmp_path: Path) -> None:
    before = num_handles()
    with pytest.raises(SourceGoneError):
        OpenSources([*catalog.sources, FileSource(tmp_path / "none")])
    assert num_handles() == before


def test_files_are_closed_after_the_last_read(catalog: ExpertCatalog) -> None:
    before = num_handles()
    sources = OpenSources(catalog.sources)
    with sources.reading():
        sources.close()
        assert num_handles() > before
    assert num_handles() == before
