"""The recent past of one pool: what was asked for, what was there, and what was in memory when it began."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .keys import ExpertKey

WINDOW_LOOKUPS = 4096


@dataclass
class Window:
    """Leases in their order, from a known state on."""

    residents: frozenset[ExpertKey]
    leases: list[Sequence[ExpertKey]] = field(default_factory=list)
    lookups: int = 0
    hits: int = 0


class RecentWindow:
    """Windows of ``WINDOW_LOOKUPS`` look-ups, one after the other; the last whole one counts as recent."""

    def __init__(self, residents: Callable[[], frozenset[ExpertKey]]):
        self._residents = residents
        self._current = Window(residents())
        self._last: Window | None = None

    def record(self, keys: Sequence[ExpertKey], hits: int) -> None:
        """A lease; to be called before it changes what is resident."""
        if self._current.lookups >= WINDOW_LOOKUPS:
            self._last, self._current = self._current, Window(self._residents())
        window = self._current
        window.leases.append(keys)
        window.lookups += len(keys)
        window.hits += hits

    @property
    def recent(self) -> Window:
        """The last whole window, or what there is of the first. Whole windows do not change any more."""
        return self._last or self._current
