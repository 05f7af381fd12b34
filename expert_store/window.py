"""The recent past of one pool: what was asked for, what was there, and what was in memory when it began."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from .keys import ExpertKey
from .replay import optimal
from .trace import TracedLease

WINDOW_LOOKUPS = 4096


@dataclass
class Window:
    """Leases in their order, from a known state on."""

    residents: frozenset[ExpertKey]
    leases: list[tuple[ExpertKey, ...]] = field(default_factory=list)
    lookups: int = 0
    hits: int = 0

    def optimal_hits(self, num_slots: int) -> int:
        """The most hits that replacement on demand could have had, had it known the future."""
        numbers: dict[ExpertKey, int] = {}

        def number(key: ExpertKey) -> int:
            return numbers.setdefault(key, len(numbers))

        leases = [TracedLease(0, tuple(map(number, lease)), "decode") for lease in self.leases]
        return optimal(leases, num_slots, [ExpertKey(0, number(key)) for key in self.residents])


class RecentWindow:
    """Windows of ``WINDOW_LOOKUPS`` look-ups, one after the other; the last whole one counts as recent."""

    def __init__(self, residents: Callable[[], frozenset[ExpertKey]]):
        self._residents = residents
        self.restart()

    def restart(self) -> None:
        """Forget the past: another number of slots makes it no guide."""
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
        """A copy of the last whole window, or of what there is of the first."""
        window = self._last or self._current
        return Window(window.residents, list(window.leases), window.lookups, window.hits)
