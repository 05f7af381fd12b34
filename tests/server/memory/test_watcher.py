"""When the watcher takes memory from the experts, and when it gives it back."""

from __future__ import annotations

import threading

import pytest

from server.memory.usage import Cause
from server.memory.watcher import CALM_SECONDS, PRESSURE_SECONDS, Reading, Watcher

MIB = 1 << 20
BUDGET = 1000 * MIB
LOW = 10 * MIB
TIMEOUT = 30.0


class Experts:
    """What can be shrunk, without experts."""

    def __init__(self, can_shrink: bool = True):
        self.unfilled_bytes, self.reserve_bytes, self.can_shrink = 0, 0, can_shrink
        self.reasons: list[str] = []
        self.causes: list[Cause] = []

    def set_reserve(self, nbytes: int, cause: Cause, reason: str) -> None:
        self.reserve_bytes = nbytes
        self.causes.append(cause)
        self.reasons.append(reason)


class Scene:
    """A watcher whose clock and readings are set by hand."""

    def __init__(self, experts: Experts | None = None):
        self.now, self.reading = 0.0, Reading(0, BUDGET)
        self.experts = experts or Experts()
        self.watcher = Watcher(self.experts, BUDGET, lambda: self.reading, lambda: self.now)

    def look(self, own: int, available: int = BUDGET, pressure: float | None = None, after: float = 0.25) -> int:
        """Look some seconds later, with so many MiB; the reserve then."""
        self.now += after
        self.reading = Reading(own * MIB, available if available == BUDGET else available * MIB, pressure)
        self.watcher.look()
        return self.experts.reserve_bytes // MIB


def test_nothing_happens_while_enough_is_left() -> None:
    scene = Scene()
    assert [scene.look(own) for own in (0, 500, 980)] == [0, 0, 0]
    assert not scene.experts.reasons


def test_experts_shrink_when_the_process_takes_more_than_was_planned() -> None:
    scene = Scene()
    assert scene.look(995) == 15
    assert scene.experts.reasons == ["less of the memory is left than was planned"]


def test_what_experts_and_blocks_may_still_take_counts_as_taken() -> None:
    scene = Scene()
    scene.experts.unfilled_bytes = 500 * MIB
    assert scene.look(495) == 15


def test_experts_shrink_when_others_take_the_memory() -> None:
    scene = Scene()
    assert scene.look(500, available=4) == 16
    assert scene.experts.causes == ["others"]


def test_experts_at_their_least_are_left_alone() -> None:
    scene = Scene(Experts(can_shrink=False))
    assert scene.look(999) == 0


def test_pressure_shrinks_experts_step_by_step() -> None:
    scene = Scene()
    assert scene.look(500, pressure=50.0) == 20
    assert scene.look(500, pressure=50.0) == 20
    assert scene.look(500, pressure=50.0, after=PRESSURE_SECONDS) == 40


def test_experts_grow_again_after_a_calm() -> None:
    scene = Scene()
    scene.look(995)
    assert scene.look(900, after=CALM_SECONDS - 1) == 15
    assert scene.look(900, after=1) == -15
    assert scene.experts.reasons[-1] == "memory is left"


def test_a_peak_within_the_calm_keeps_them_small() -> None:
    scene = Scene()
    scene.look(995)
    scene.look(985, after=CALM_SECONDS / 2)
    assert scene.look(900, after=CALM_SECONDS / 2) == 15


def test_a_look_that_fails_is_not_the_last(caplog: pytest.LogCaptureFixture) -> None:
    looks, looked_again = iter([OSError("too many open files"), OSError("too many open files")]), threading.Event()

    def read() -> Reading:
        for error in looks:
            raise error
        looked_again.set()
        return Reading(0, BUDGET)

    watcher = Watcher(Experts(), BUDGET, read)
    watcher.start()
    assert looked_again.wait(TIMEOUT)
    watcher.stop()
    assert [record.getMessage() for record in caplog.records] == [
        "memory could not be looked at; trying again every 0.25 s"
    ]


def test_experts_shrink_once_until_enough_is_free() -> None:
    scene = Scene()
    scene.reading = Reading(900 * MIB, BUDGET)
    readings = iter([scene.reading, scene.reading, Reading(600 * MIB, BUDGET)])
    watcher = Watcher(scene.experts, BUDGET, lambda: next(readings))
    assert watcher.make_free(300 * MIB)
    assert scene.experts.reserve_bytes == 200 * MIB
    assert scene.experts.causes == ["process"]


def test_what_can_not_come_free_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.memory.watcher.MAKE_FREE_SECONDS", 0.05)
    scene = Scene(Experts(can_shrink=False))
    scene.reading = Reading(900 * MIB, BUDGET)
    assert not scene.watcher.make_free(300 * MIB)
