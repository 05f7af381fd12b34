"""The weights of one request: an expert variant, adapters, or both."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace

from server.engine.interface import RequestWeights
from server.model.chunk_weights import ChunkWeights, RoutedTokens
from server.weights.variant_registry import VariantRegistry, VariantVersion


class VariantSelection:
    """The ``RequestWeights`` of a request with an expert variant.

    The version is that when its first sequence begins. Experts come to memory as tokens are routed to them, so there
    is nothing to acquire.
    """

    def __init__(self, name: str, registry: VariantRegistry):
        self._name, self._registry = name, registry
        self._version: VariantVersion | None = None
        self._num_sequences = 0
        self._lock = threading.Lock()  # guards the two fields above

    @property
    def cache_salt(self) -> bytes:
        return self._current.version.encode()

    def begin(self) -> None:
        with self._lock:
            if self._version is None or not self._num_sequences:
                self._version = self._registry.begin(self._name)
            else:
                self._registry.begin_again(self._version)
            self._num_sequences += 1

    def end(self) -> None:
        with self._lock:
            self._num_sequences -= 1
        self._registry.end(self._current)

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        """Do nothing: the store's leases hold experts for as long as a step needs them."""

    def note_routed(self, tokens: RoutedTokens) -> None:
        """Do nothing: no router chooses adapters."""

    @property
    def routed_shares(self) -> Mapping[str, float]:
        return {}

    @property
    def chunk_weights(self) -> ChunkWeights:
        return ChunkWeights(variant=self._current.files.variant)

    @property
    def _current(self) -> VariantVersion:
        assert self._version is not None
        return self._version


class CombinedSelection:
    """The ``RequestWeights`` of a request with an expert variant and adapters."""

    def __init__(self, variant: VariantSelection, adapters: RequestWeights):
        self._variant, self._adapters = variant, adapters

    @property
    def cache_salt(self) -> bytes:
        return self._variant.cache_salt + b"+" + self._adapters.cache_salt

    def begin(self) -> None:
        self._variant.begin()
        try:
            self._adapters.begin()
        except Exception:
            self._variant.end()
            raise

    def end(self) -> None:
        self._variant.end()
        self._adapters.end()

    def acquire(self) -> bool:
        return self._adapters.acquire()

    def release(self) -> None:
        self._adapters.release()

    def note_routed(self, tokens: RoutedTokens) -> None:
        self._adapters.note_routed(tokens)

    @property
    def routed_shares(self) -> Mapping[str, float]:
        return self._adapters.routed_shares

    @property
    def chunk_weights(self) -> ChunkWeights:
        return replace(self._adapters.chunk_weights, variant=self._variant.chunk_weights.variant)
