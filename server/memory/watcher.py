"""Watches how much memory is really left, and takes some from the experts before the kernel ends the process."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from .control_group import memory_pressure
from .machine import available_bytes, own_bytes
from .usage import Cause

log = logging.getLogger(__name__)

TICK_SECONDS = 0.25
LOW, LEAST_LOW = 0.01, 8 << 20  # of the budget: with less left, experts shrink
CALM_SECONDS = 30.0  # that more than enough is left before experts grow
ENOUGH = 0.04  # of the budget: what has to be left then
PRESSURE = 10.0  # percent of the last ten seconds in which some thread of the group waited for memory
PRESSURE_STEP = 0.02  # of the budget, that experts shrink by then
MAKE_FREE_SECONDS = 2.0  # that slots may take to come free
PRESSURE_SECONDS = 5.0  # before they shrink by it again


class Shrinkable(Protocol):
    """An owner of memory that gives some up; see ``Shares``."""

    @property
    def unfilled_bytes(self) -> int: ...

    @property
    def reserve_bytes(self) -> int: ...

    @property
    def can_shrink(self) -> bool: ...

    def set_reserve(self, nbytes: int, cause: Cause, reason: str) -> None: ...


@dataclass(frozen=True)
class Reading:
    """Memory use at one moment."""

    own_bytes: int  # of the process and its children
    available_bytes: int  # that the machine or its tightest control group leaves
    pressure: float | None = None  # percent; None where the kernel does not tell

    @classmethod
    def take(cls) -> Reading:
        return cls(own_bytes(), available_bytes(), memory_pressure())


class Watcher:
    """A thread that shrinks the experts when too little memory is left, and lets them grow again later.

    Memory counts as if experts and KV cache had taken all that they may, so that none is short when they do. Where the
    plan set aside more than is taken, experts get some of it, too.

    Args:
        budget_bytes: of the process and its children.
        read: tells how memory is.
    """

    def __init__(
        self,
        shares: Shrinkable,
        budget_bytes: int,
        read: Callable[[], Reading] = Reading.take,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._shares, self._budget_bytes, self._read, self._clock = shares, budget_bytes, read, clock
        self._low = max(LEAST_LOW, int(LOW * budget_bytes))
        self._least_left: int | None = None  # since the calm began
        self._calm_since = clock()
        self._pressed_at = float("-inf")
        self._lock = threading.Lock()  # held from a reading until the reserve is set by it
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="memory-watcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and wait for it."""
        self._ends.set()
        self._thread.join()

    def look(self) -> None:
        """Look once, and act."""
        with self._lock:
            self._look()

    def _look(self) -> None:
        reading, shares, now = self._read(), self._shares, self._clock()
        left = self._left(reading)
        self._least_left = left if self._least_left is None else min(left, self._least_left)
        if left < self._low:
            self._begin_calm(now)
            if shares.can_shrink:
                cause: Cause = "process"
                reason = "less of the memory is left than was planned"
                if reading.available_bytes < self._budget_bytes - reading.own_bytes:
                    cause, reason = "others", "others take the memory of the machine or its control group"
                shares.set_reserve(shares.reserve_bytes + 2 * self._low - left, cause, reason)
        elif reading.pressure is not None and reading.pressure > PRESSURE:
            self._begin_calm(now)
            if shares.can_shrink and now - self._pressed_at >= PRESSURE_SECONDS:
                self._pressed_at = now
                step = int(PRESSURE_STEP * self._budget_bytes)
                shares.set_reserve(
                    shares.reserve_bytes + step, "pressure", f"memory pressure is {reading.pressure:.0f} %"
                )
        elif now - self._calm_since >= CALM_SECONDS:
            more = self._least_left - max(3 * self._low, int(ENOUGH * self._budget_bytes))
            if more > 0:
                shares.set_reserve(shares.reserve_bytes - max(more // 2, self._low), "calm", "memory is left")
            self._begin_calm(now)

    def make_free(self, nbytes: int) -> bool:
        """Shrink the experts until so many bytes are left, for a moment; whether they are. May block for seconds."""
        ends_at, has_asked = time.monotonic() + MAKE_FREE_SECONDS, False
        while True:
            with self._lock:
                left = self._left(self._read())
                if left < nbytes and not has_asked:
                    reserve = self._shares.reserve_bytes + nbytes - left
                    self._shares.set_reserve(reserve, "process", "images of a request need memory")
                    has_asked = True
            if left >= nbytes:
                return True
            if time.monotonic() >= ends_at:
                return False
            time.sleep(MAKE_FREE_SECONDS / 40)

    def _left(self, reading: Reading) -> int:
        """Bytes that would be left if experts and KV cache had taken all that they may."""
        left = min(self._budget_bytes - reading.own_bytes, reading.available_bytes)
        return left - self._shares.unfilled_bytes

    def _begin_calm(self, now: float) -> None:
        self._calm_since, self._least_left = now, None

    def _loop(self) -> None:
        has_failed = False
        while not self._ends.wait(TICK_SECONDS):
            try:
                self.look()
            except Exception:  # as of a process that may open no more files
                if not has_failed:
                    log.exception("memory could not be looked at; trying again every %g s", TICK_SECONDS)
                has_failed = True
            else:
                has_failed = False
