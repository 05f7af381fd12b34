"""StepLease: all experts of all layers for one step, where they all fit in memory.

A step may also use experts of variants. Each layer then has a list of *places*: its own experts and those of variants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from expert_store.entry import Entry
from expert_store.keys import ExpertKey
from expert_store.lease import Recorder
from expert_store.statistics import Phase
from expert_store.store_state import StoreState

Addresses = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]
LayerKeys = Mapping[int, Sequence[ExpertKey]]


class _LayerKeys(NamedTuple):
    """The experts of some layers, one after the other."""

    keys: list[ExpertKey]
    tokens: npt.NDArray[np.intp]  # the index of each in ``StoreStatistics.tokens``, flattened; -1 for none
    bounds: npt.NDArray[np.intp]  # the index at which each layer begins, and the end of the last


class ResidentAddresses:
    """The addresses of some experts while all are in the host tier; computed anew only when something has moved.

    The caller holds the store's lock.

    Args:
        keys: the experts of each layer, by place; by default the model's own.
    """

    def __init__(self, state: StoreState, keys: LayerKeys | None = None):
        self._state = state
        self._by_layer: LayerKeys = state.keys if keys is None else keys
        self._most_places = max(map(len, self._by_layer.values()))
        self._keys = {
            pool: frozenset(
                key for layer, keys in self._by_layer.items() if state.pool_of[layer] is pool for key in keys
            )
            for pool in state.pools
        }
        self._num_changes: list[int] = []
        self._addresses: Addresses | None = None
        self.prefetched: list[Entry] = []  # entries that were prefetched and may not have been requested yet
        self._layer_keys: dict[tuple[int, ...], _LayerKeys] = {}

    @property
    def has_variants(self) -> bool:
        return self._by_layer is not self._state.keys

    def is_of(self, keys: LayerKeys) -> bool:
        """Return True if these are the addresses of the same object of keys."""
        return self._by_layer is keys

    def hold(self) -> Addresses | None:
        """Hold all experts in their slots; None, and no hold, if not all are resident."""
        pools = self._state.pools
        if any(pool.top is not pool.host or pool.host.num_entries < len(self._keys[pool]) for pool in pools):
            return None
        num_changes = [pool.host.num_changes for pool in pools]
        if num_changes != self._num_changes:
            self._num_changes = num_changes
            self._update()
        if self._addresses is not None:
            for pool in pools:
                pool.host.hold(self._keys[pool])
        return self._addresses

    def end_hold(self) -> None:
        """End one ``hold``."""
        for pool in self._state.pools:
            pool.host.end_hold()
        self._state.lock.wake_waiters()

    def layer_keys(self, layers: tuple[int, ...]) -> _LayerKeys:
        """Return the experts of some layers, in the order of their counts."""
        found = self._layer_keys.get(layers)
        if found is None:
            catalog = self._state.catalog
            rows, width = {layer: row for row, layer in enumerate(catalog.layers)}, catalog.num_experts
            keys = [key for layer in layers for key in self._by_layer[layer]]
            indices = [rows[key.layer] * width + key.expert if key.expert < width else -1 for key in keys]
            bounds = np.cumsum([0, *(len(self._by_layer[layer]) for layer in layers)])
            found = self._layer_keys[layers] = _LayerKeys(keys, np.array(indices, np.intp), bounds)
        return found

    def _update(self) -> None:
        self._addresses, self.prefetched = None, []
        state = self._state
        addresses = np.zeros((len(self._by_layer), self._most_places), np.uint64)
        for row, (layer, keys) in zip(addresses, self._by_layer.items(), strict=True):
            pool = state.pool_of[layer]
            entries = pool.host.find_ready(keys)
            if entries is None:
                return
            row[: len(keys)] = pool.addresses(entries)
            self.prefetched += [entry for entry in entries if entry.is_prefetched]
        addresses.flags.writeable = False
        self._addresses = addresses


class StepLease:
    """A context manager that holds all experts of all layers in their slots, as a lease of each would.

    While it is open, none is evicted, and budgets that shrink wait for its end. Other variants of experts than those
    that were asked for are not held; a lease of one may have to wait for the end of this one.
    """

    def __init__(
        self, state: StoreState, residents: ResidentAddresses, addresses: Addresses, recorder: Recorder | None
    ):
        self._state, self._residents, self._recorder = state, residents, recorder
        self._is_open = True
        self.layers = list(state.keys)  # in the order of the rows of ``addresses``
        self.addresses = addresses  # (layers, places): where each slot begins; 0 where a layer has fewer places

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._is_open:
            self._is_open = False
            with self._state.lock:
                self._residents.end_hold()

    def close(self, rows: Mapping[int, Counts], phase: Phase = "decode") -> None:
        """End the lease of a step that succeeded, and count what it used as one lease of each layer.

        A step that fails leaves the context without this call; nothing is counted then.

        Args:
            rows: by layer in the order in which they ran, the rows that each place was run on, ``(places,)``.

        Raises:
            ValueError: the lease has ended, or counts are not of all experts of a layer.
        """
        if not self._is_open:
            raise ValueError("the lease of this step is closed already")
        layers = tuple(rows)
        counts = np.concatenate([*rows.values()]) if rows else np.zeros(0, np.int64)
        with self._state.lock:
            experts = self._residents.layer_keys(layers)
            if len(counts) != len(experts.keys):
                raise ValueError(f"{len(counts)} counts for the {len(experts.keys)} experts of these layers")
            used = counts.nonzero()[0]
            requested = [experts.keys[place] for place in used.tolist()]
            self._count_tokens(experts, used, counts)
            for start, end in pairwise(used.searchsorted(experts.bounds).tolist()):
                if start < end:
                    self._count(tuple(requested[start:end]), phase)
            self._count_prefetches(requested)
            self._is_open = False
            self._residents.end_hold()

    def _count_tokens(self, experts: _LayerKeys, used: npt.NDArray[np.intp], counts: Counts) -> None:
        statistics, indices = self._state.statistics, experts.tokens[used]
        if not self._residents.has_variants:
            statistics.tokens.reshape(-1)[indices] += counts[used]
            return
        is_counted = indices >= 0
        np.add.at(statistics.tokens.reshape(-1), indices[is_counted], counts[used][is_counted])
        for place in used.tolist():
            variant = experts.keys[place].variant
            if variant in self._state.catalog.variants:
                statistics.variant_tokens[variant] += int(counts[place])

    def _count(self, requested: tuple[ExpertKey, ...], phase: Phase) -> None:
        layer = requested[0].layer
        pool = self._state.pool_of[layer]
        if self._recorder is not None:
            self._recorder.record(layer, [key.expert for key in requested], phase)
        self._state.count_hits(pool, requested, phase)
        pool.host.touch(requested)

    def _count_prefetches(self, requested: list[ExpertKey]) -> None:
        if not self._residents.prefetched:
            return
        keys = set(requested)
        for entry in self._residents.prefetched:
            if entry.is_prefetched and entry.key in keys:
                self._state.pool_of[entry.key.layer].count_prefetch(entry, "used")
        self._residents.prefetched = [entry for entry in self._residents.prefetched if entry.is_prefetched]
