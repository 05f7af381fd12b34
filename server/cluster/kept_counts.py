"""KeptCounts: what replicas have counted, kept beyond their end, so that no counter of a cluster falls.

The pages of replicas and the sums of those that are gone are joined in any order and any number of times: of a replica
the newest page counts, of sums those of the most replicas. So each place may lose them and get them from another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from secrets import token_bytes

from server.cluster.merged_metrics import sum_counts

GONE_SECONDS = 600.0  # of exchanges without a new page, after which a replica is gone: Serve has stopped it long before
SECRET_BYTES = 16


@dataclass(frozen=True)
class MetricsPage:
    """The metrics of a replica at one moment.

    Args:
        number: of the page among those of the replica.
    """

    number: int
    text: bytes


@dataclass(frozen=True)
class Counts:
    """Counts of all replicas that there have been.

    Args:
        pages: the newest page of each replica, by its name.
        gone: names of replicas whose counts are in ``sums`` and that have no page any more.
        secret: hides names in metrics.
    """

    pages: Mapping[str, MetricsPage] = field(default_factory=dict)
    gone: frozenset[str] = frozenset()
    sums: bytes = b""
    secret: bytes = b""

    def joined(self, other: Counts) -> Counts:
        """Return these counts and others, without loss, and nothing twice."""
        more = other if len(other.gone) > len(self.gone) else self
        pages = dict(self.pages)
        for name, page in other.pages.items():
            if name not in pages or page.number > pages[name].number:
                pages[name] = page
        left = {name: page for name, page in pages.items() if name not in more.gone}
        return Counts(left, more.gone, more.sums, self.secret or other.secret)

    def beyond(self, other: Counts) -> Counts:
        """Return these counts without the pages that another has as new."""
        return replace(self, pages={name: page for name, page in self.pages.items() if other.pages.get(name) != page})


class KeptCounts:
    """Keeps the counts of all replicas. Use it in one thread at a time.

    Args:
        clock: returns seconds of a monotonic clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._counts = Counts()
        self._exchanged_at = clock()
        self._silent_since: dict[str, float] = {}  # the first exchange without a new page of a replica

    def exchange(self, counts: Counts) -> Counts:
        """Take counts, and return all that the caller does not have."""
        before, now = self._counts, self._clock()
        if now - self._exchanged_at > GONE_SECONDS:
            self._silent_since.clear()  # nobody has asked, so nobody was silent
        self._exchanged_at = now
        self._counts = before.joined(counts)
        if not self._counts.secret:
            self._counts = replace(self._counts, secret=token_bytes(SECRET_BYTES))
        silent = [name for name, page in self._counts.pages.items() if before.pages.get(name) == page]
        self._silent_since = {name: self._silent_since.get(name, now) for name in silent}
        self._sum_up([name for name in silent if now - self._silent_since[name] > GONE_SECONDS])
        return self._counts.beyond(counts)

    def _sum_up(self, names: list[str]) -> None:
        """Add the counts of replicas that are gone to the sums, in place of their pages."""
        if names:
            pages = dict(self._counts.pages)
            sums = sum_counts([self._counts.sums, *(pages.pop(name).text for name in names)])
            self._counts = replace(self._counts, pages=pages, gone=self._counts.gone.union(names), sums=sums)
