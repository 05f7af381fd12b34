"""Reading threads: what is demanded goes first, and nothing that was asked for is forgotten."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from expert_store import (
    ExpertCatalog,
    ExpertKey,
    ExpertLayout,
    LayerEntry,
    ParameterRecipe,
    ParameterSpec,
    find_shards,
    read_index,
)
from expert_store.arena import HostArena, page_aligned
from expert_store.errors import SourceGoneError, StoreClosedError
from expert_store.io.expert_read import ExpertRead
from expert_store.io.reader import SCRATCH_BYTES, Priority, SourceReader
from expert_store.sources.base import Bytes
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

    def held_part(_: object) -> None:
        begun.release()
        assert hold.wait(TIMEOUT)

    for expert in (0, 1):
        ahead = desk.job(expert, Priority.PREFETCH)
        monkeypatch.setattr(ahead, "parts", lambda: [held_part])
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


class Divided:
    """A job of parts that begin, and end when they are let."""

    priority = Priority.DEMAND

    def __init__(self, sources: OpenSources, num_parts: int, error: Exception | None = None):
        self.sources, self._num_parts, self._error = sources, num_parts, error
        self.begun, self.hold, self.ended = threading.Semaphore(0), threading.Event(), threading.Event()
        self.num_read, self.results = 0, list[Exception | None]()

    def parts(self) -> list[Callable[[Bytes], None]]:
        return [self._read] * self._num_parts

    def _read(self, scratch: Bytes) -> None:
        del scratch
        self.begun.release()
        assert self.hold.wait(TIMEOUT)
        self.num_read += 1
        if self._error is not None:
            raise self._error

    def done(self, error: Exception | None) -> None:
        self.results.append(error)
        self.ended.set()


def test_parts_of_an_expert_together_fill_its_slot(tmp_path: Path) -> None:
    """A plain matrix, and one that is made of a matrix of the file."""
    up, down = torch.rand(300, 600), torch.rand(600, 300)
    save_file({"up": up, "down": down}, tmp_path / "model.safetensors")
    index = read_index(find_shards(tmp_path))
    recipe = {
        "up": ParameterRecipe((index["up"],)),
        "down": ParameterRecipe((index["down"],), lambda sources: sources[0].T),
    }
    layout = ExpertLayout(tuple(ParameterSpec(name, torch.float32, (300, 600)) for name in recipe))
    catalog = ExpertCatalog({0: LayerEntry(layout, (recipe,))})
    sources, arena = OpenSources(catalog.sources), HostArena(layout, 1, 1)
    read = ExpertRead(ExpertKey(0, 0), recipe, sources, arena, 0, lambda _: None)
    parts = read.parts()
    assert len(parts) == 2
    for part in parts:
        part(page_aligned(SCRATCH_BYTES))
    sources.close()
    assert torch.equal(arena.weights(0)["up"], up)
    assert torch.equal(arena.weights(0)["down"], down.T)


def test_idle_threads_read_parts_of_one_job_at_once(catalog: ExpertCatalog) -> None:
    desk = Desk(catalog, 3)
    job = Divided(desk.sources, 3)
    desk.reader.submit(job)
    assert all(job.begun.acquire(timeout=TIMEOUT) for _ in range(3))
    assert not job.results
    job.hold.set()
    assert job.ended.wait(TIMEOUT)
    desk.close()
    assert (job.num_read, job.results) == (3, [None])


def test_a_thread_begins_a_demand_before_it_helps_with_another(catalog: ExpertCatalog) -> None:
    desk = Desk(catalog, 2)
    job, hold = Divided(desk.sources, 3), threading.Event()
    desk.reader.submit(desk.job(0, hold=hold))
    desk.wait_until_begun()
    desk.reader.submit(job)
    assert job.begun.acquire(timeout=TIMEOUT)
    desk.reader.submit(desk.job(1))
    hold.set()
    assert desk.wait_for(2) == [0, 1]
    job.hold.set()
    assert job.ended.wait(TIMEOUT)
    desk.close()


def test_a_part_that_fails_ends_its_job_once_the_others_are_over(catalog: ExpertCatalog) -> None:
    desk = Desk(catalog, 2)
    error = SourceGoneError("some.bin", "is gone")
    job = Divided(desk.sources, 9, error)
    desk.reader.submit(job)
    assert all(job.begun.acquire(timeout=TIMEOUT) for _ in range(2))
    job.hold.set()
    assert job.ended.wait(TIMEOUT)
    desk.close()
    assert (job.num_read, job.results) == (2, [error])


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
