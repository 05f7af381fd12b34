"""StepLease: all experts of all layers for one step, where they all fit in memory."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from .backstage import Backstage
from .keys import ExpertKey
from .lease import Recorder
from .statistics import Phase
from .tier import Entry

Addresses = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]


class _Places(NamedTuple):
    """The experts of some layers, one after the other."""

    keys: list[ExpertKey]
    tokens: npt.NDArray[np.intp]  # where each is counted in ``StoreStatistics.tokens``, taken as one row
    ends: npt.NDArray[np.intp]  # where each layer's begin, and the end of the last


class Residents:
    """Knows whether all experts are in the host tier, and where; asks anew only when something has moved.

    The store's lock is held by whoever calls.
    """

    def __init__(self, backstage: Backstage):
        self._backstage = backstage
        self._keys = {pool: frozenset(pool.experts) for pool in backstage.pools}
        self._num_changes: list[int] = []
        self._addresses: Addresses | None = None
        self.ahead: list[Entry] = []  # of those that were prefetched and may not have been asked for yet
        self._places: dict[tuple[int, ...], _Places] = {}

    def keep(self) -> Addresses | None:
        """Keep all experts where they are; None, and none is kept, if not all are there."""
        pools = self._backstage.pools
        if any(pool.top is not pool.host or pool.host.num_entries < len(self._keys[pool]) for pool in pools):
            return None
        num_changes = [pool.host.num_changes for pool in pools]
        if num_changes != self._num_changes:
            self._num_changes = num_changes
            self._look()
        if self._addresses is not None:
            for pool in pools:
                pool.host.keep(self._keys[pool])
        return self._addresses

    def let_go(self) -> None:
        """End one ``keep``."""
        for pool in self._backstage.pools:
            pool.host.let_go()
        self._backstage.wake()

    def places(self, layers: tuple[int, ...]) -> _Places:
        """The experts of some layers, in the order in which their counts come."""
        places = self._places.get(layers)
        if places is None:
            catalog = self._backstage.catalog
            rows = {layer: row for row, layer in enumerate(catalog.layers)}
            keys = [key for layer in layers for key in self._backstage.keys[layer]]
            numbers = [rows[key.layer] * catalog.num_experts + key.expert for key in keys]
            ends = np.cumsum([0, *(len(self._backstage.keys[layer]) for layer in layers)])
            places = self._places[layers] = _Places(keys, np.array(numbers, np.intp), ends)
        return places

    def _look(self) -> None:
        self._addresses, self.ahead = None, []
        backstage = self._backstage
        addresses = np.zeros((len(backstage.keys), backstage.catalog.num_experts), np.uint64)
        for row, (layer, keys) in zip(addresses, backstage.keys.items(), strict=True):
            pool = backstage.pool_of[layer]
            entries = pool.host.find_ready(keys)
            if entries is None:
                return
            row[: len(keys)] = pool.addresses(entries)
            self.ahead += [entry for entry in entries if entry.is_ahead]
        addresses.flags.writeable = False
        self._addresses = addresses


class StepLease:
    """A context manager that holds all experts of all layers where they are, as a lease of each would.

    While it is open none is evicted, and budgets that shrink wait for its end. Other variants of experts are not held;
    whoever needs one takes a lease, which may have to wait for the end of this.
    """

    def __init__(self, backstage: Backstage, residents: Residents, addresses: Addresses, recorder: Recorder | None):
        self._backstage, self._residents, self._recorder = backstage, residents, recorder
        self._is_open = True
        self.layers = list(backstage.keys)  # in the order of the rows of ``addresses``
        self.addresses = addresses  # (layers, experts): where each slot begins; 0 where a layer has fewer experts

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._is_open:
            self._is_open = False
            with self._backstage.changed:
                self._residents.let_go()

    def close(self, rows: Mapping[int, Counts], phase: Phase = "decode") -> None:
        """End the lease of a step that succeeded, and count what it used as one lease of each layer.

        Leaving without it counts nothing: of a step that failed nobody knows what it used.

        Args:
            rows: by layer in the order in which they ran, the rows that each expert was run on, ``(experts,)``.

        Raises:
            ValueError: the lease has ended, or counts are not of all experts of a layer.
        """
        if not self._is_open:
            raise ValueError("a step's lease is closed once")
        layers = tuple(rows)
        counts = np.concatenate([*rows.values()]) if rows else np.zeros(0, np.int64)
        with self._backstage.changed:
            places = self._residents.places(layers)
            if len(counts) != len(places.keys):
                raise ValueError(f"{len(counts)} counts for the {len(places.keys)} experts of these layers")
            used = counts.nonzero()[0]
            asked = [places.keys[place] for place in used.tolist()]
            self._backstage.statistics.tokens.reshape(-1)[places.tokens[used]] += counts[used]
            for start, end in pairwise(used.searchsorted(places.ends).tolist()):
                if start < end:
                    self._count(tuple(asked[start:end]), phase)
            self._count_ahead(asked)
            self._is_open = False
            self._residents.let_go()

    def _count(self, asked: tuple[ExpertKey, ...], phase: Phase) -> None:
        layer = asked[0].layer
        pool = self._backstage.pool_of[layer]
        if self._recorder is not None:
            self._recorder.record(layer, [key.expert for key in asked], phase)
        self._backstage.count_hits(pool, asked, phase)
        pool.host.touch(asked)

    def _count_ahead(self, asked: list[ExpertKey]) -> None:
        if not self._residents.ahead:
            return
        keys = set(asked)
        for entry in self._residents.ahead:
            if entry.is_ahead and entry.key in keys:
                self._backstage.count_ahead(entry, "used")
        self._residents.ahead = [entry for entry in self._residents.ahead if entry.is_ahead]
