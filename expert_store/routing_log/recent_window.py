"""The recent look-ups of one pool, and their optimum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from expert_store.keys import ExpertKey
from expert_store.routing_log.log import LoggedLease
from expert_store.routing_log.replay import optimal

WINDOW_LOOKUPS = 4096


@dataclass
class Window:
    """Consecutive leases, and the residents before the first."""

    residents: frozenset[ExpertKey]
    leases: list[tuple[ExpertKey, ...]] = field(default_factory=list)
    lookups: int = 0
    hits: int = 0

    def optimal_hits(self, num_slots: int) -> int:
        """Return the most hits that replacement on demand could have had, had it known the future.

        Slots of a smaller budget may still be in use when the window begins. They count as slots then, so that the
        result stays a bound.
        """
        if not self.leases:
            return 0
        numbers: dict[ExpertKey, int] = {}

        def number(key: ExpertKey) -> int:
            return numbers.setdefault(key, len(numbers))

        leases = [LoggedLease(0, tuple(map(number, lease)), "decode") for lease in self.leases]
        return optimal(
            leases, max(num_slots, len(self.residents)), [ExpertKey(0, number(key)) for key in self.residents]
        )


class RecentWindow:
    """Records windows of ``WINDOW_LOOKUPS`` look-ups, one after the other; ``recent`` is the last complete one."""

    def __init__(self, residents: Callable[[], frozenset[ExpertKey]]):
        self._residents = residents
        self.restart()

    def restart(self) -> None:
        """Forget the past, which another number of slots makes irrelevant."""
        self._current = Window(self._residents())
        self._last: Window | None = None

    def record(self, lease: tuple[ExpertKey, ...], hits: int) -> None:
        """Add a lease; to be called before it changes what is resident."""
        if self._current.lookups >= WINDOW_LOOKUPS:
            self._last, self._current = self._current, Window(self._residents())
        window = self._current
        window.leases.append(lease)
        window.lookups += len(lease)
        window.hits += hits

    @property
    def recent(self) -> Window:
        """A copy of the last complete window; of the first one while it is being filled."""
        window = self._last or self._current
        return Window(window.residents, list(window.leases), window.lookups, window.hits)
