"""Watches the available memory, and shrinks the experts before the kernel kills the process."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from server.memory.control_group import memory_pressure
from server.memory.machine import available_bytes, own_bytes
from server.memory.usage import Cause

log = logging.getLogger(__name__)

TICK_SECONDS = 0.25
LOW, LEAST_LOW = 0.01, 8 << 20  # share of the budget: experts shrink if less is available
CALM_SECONDS = 30.0  # experts grow after enough memory was available for so long
ENOUGH = 0.04  # share of the budget that counts as enough
PRESSURE = 10.0  # experts shrink if threads waited for memory in more than 10 % of the last ten seconds
PRESSURE_STEP = 0.02  # share of the budget by which they shrink then
PRESSURE_SECONDS = 5.0  # shortest time between two shrinks for pressure


class Shrinkable(Protocol):
    """Memory that can shrink; see ``ElasticBudget``."""

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

    own_bytes: int  # used by the process and its children
    available_bytes: int  # on the machine, or in its tightest control group
    pressure: float | None = None  # percent; None if the kernel does not measure it

    @classmethod
    def take(cls) -> Reading:
        return cls(own_bytes(), available_bytes(), memory_pressure())


class Watcher:
    """A thread that shrinks the experts when too little memory is available, and lets them grow again later.

    Memory that was granted to experts and KV cache counts as used, so that it is available when they use it. If less
    of the reserved memory is used than was planned, experts get some of it, too.

    Args:
        elastic_budget: the budget of experts and KV cache.
        budget_bytes: memory that the process and its children may use.
        read: measures the memory.
        before_check: called before each measurement.
    """

    def __init__(
        self,
        elastic_budget: Shrinkable,
        budget_bytes: int,
        read: Callable[[], Reading] = Reading.take,
        clock: Callable[[], float] = time.monotonic,
        before_check: Callable[[], None] = lambda: None,
    ):
        self._before_check = before_check
        self._elastic_budget, self._budget_bytes, self._read, self._clock = elastic_budget, budget_bytes, read, clock
        self._low = max(LEAST_LOW, int(LOW * budget_bytes))
        self._least_left: int | None = None  # minimum since the calm period began
        self._calm_since = clock()
        self._pressed_at = float("-inf")
        self._lock = threading.Lock()  # held from a reading until the reserve is set
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="memory-watcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread, and wait for it."""
        self._ends.set()
        self._thread.join()

    def check(self) -> None:
        """Measure the memory once, and resize the experts if needed."""
        self._before_check()
        with self._lock:
            self._check()

    def _check(self) -> None:
        reading, elastic, now = self._read(), self._elastic_budget, self._clock()
        left = self._left(reading)
        self._least_left = left if self._least_left is None else min(left, self._least_left)
        if left < self._low:
            self._begin_calm(now)
            if elastic.can_shrink:
                cause: Cause = "process"
                reason = "the server uses more memory than planned"
                if reading.available_bytes < self._budget_bytes - reading.own_bytes:
                    cause, reason = "others", "other processes use memory of the machine or its control group"
                elastic.set_reserve(elastic.reserve_bytes + 2 * self._low - left, cause, reason)
        elif reading.pressure is not None and reading.pressure > PRESSURE:
            self._begin_calm(now)
            if elastic.can_shrink and now - self._pressed_at >= PRESSURE_SECONDS:
                self._pressed_at = now
                step = int(PRESSURE_STEP * self._budget_bytes)
                elastic.set_reserve(
                    elastic.reserve_bytes + step, "pressure", f"memory pressure is {reading.pressure:.0f} %"
                )
        elif now - self._calm_since >= CALM_SECONDS:
            more = self._least_left - max(3 * self._low, int(ENOUGH * self._budget_bytes))
            if more > 0:
                elastic.set_reserve(elastic.reserve_bytes - max(more // 2, self._low), "calm", "memory is available")
            self._begin_calm(now)

    def _left(self, reading: Reading) -> int:
        """Return the bytes that would be available if experts and KV cache used all that they were granted."""
        left = min(self._budget_bytes - reading.own_bytes, reading.available_bytes)
        return left - self._elastic_budget.unfilled_bytes

    def _begin_calm(self, now: float) -> None:
        self._calm_since, self._least_left = now, None

    def _loop(self) -> None:
        has_failed = False
        while not self._ends.wait(TICK_SECONDS):
            try:
                self.check()
            except Exception:  # such as too many open files
                if not has_failed:
                    log.exception("memory could not be measured; trying again every %g s", TICK_SECONDS)
                has_failed = True
            else:
                has_failed = False
