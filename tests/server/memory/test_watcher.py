"""The watcher shrinks experts when memory is short, and lets them grow later."""

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
    """A budget without experts that can shrink."""

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

    def check(self, own: int, available: int = BUDGET, pressure: float | None = None, after: float = 0.25) -> int:
        """Check some seconds later, with memory use in MiB, and return the reserve in MiB."""
        self.now += after
        self.reading = Reading(own * MIB, available if available == BUDGET else available * MIB, pressure)
        self.watcher.check()
        return self.experts.reserve_bytes // MIB


def test_experts_keep_their_size_while_enough_memory_is_available() -> None:
    scene = Scene()
    assert [scene.check(own) for own in (0, 500, 980)] == [0, 0, 0]
    assert not scene.experts.reasons


def test_experts_shrink_when_the_process_uses_more_than_planned() -> None:
    scene = Scene()
    assert scene.check(995) == 15
    assert scene.experts.reasons == ["the server uses more memory than planned"]


def test_memory_granted_to_experts_and_blocks_counts_as_used() -> None:
    scene = Scene()
    scene.experts.unfilled_bytes = 500 * MIB
    assert scene.check(495) == 15


def test_experts_shrink_when_other_processes_use_the_memory() -> None:
    scene = Scene()
    assert scene.check(500, available=4) == 16
    assert scene.experts.causes == ["others"]


def test_experts_at_their_minimum_do_not_shrink() -> None:
    scene = Scene(Experts(can_shrink=False))
    assert scene.check(999) == 0


def test_pressure_shrinks_experts_step_by_step() -> None:
    scene = Scene()
    assert scene.check(500, pressure=50.0) == 20
    assert scene.check(500, pressure=50.0) == 20
    assert scene.check(500, pressure=50.0, after=PRESSURE_SECONDS) == 40


def test_experts_grow_again_after_a_calm_period() -> None:
    scene = Scene()
    scene.check(995)
    assert scene.check(900, after=CALM_SECONDS - 1) == 15
    assert scene.check(900, after=1) == -15
    assert scene.experts.reasons[-1] == "memory is available"


def test_a_peak_in_the_calm_period_keeps_them_small() -> None:
    scene = Scene()
    scene.check(995)
    scene.check(985, after=CALM_SECONDS / 2)
    assert scene.check(900, after=CALM_SECONDS / 2) == 15


def test_a_check_that_fails_is_repeated(caplog: pytest.LogCaptureFixture) -> None:
    errors, read_again = iter([OSError("too many open files"), OSError("too many open files")]), threading.Event()

    def read() -> Reading:
        for error in errors:
            raise error
        read_again.set()
        return Reading(0, BUDGET)

    watcher = Watcher(Experts(), BUDGET, read)
    watcher.start()
    assert read_again.wait(TIMEOUT)
    watcher.stop()
    assert [record.getMessage() for record in caplog.records] == [
        "memory could not be measured; trying again every 0.25 s"
    ]
