"""AdapterSelection: the adapters of one request."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from server.engine.interface import UnknownAdapterError
from server.model.chunk_weights import ChunkWeights, WeightedAdapter
from server.weights.adapter_memory import AdapterMemory
from server.weights.adapter_version import AdapterVersion

Find = Callable[[str], AdapterVersion | None]  # the current version of an adapter


class AdapterSelection:
    """The ``RequestWeights`` of a request with adapters.

    Their versions are those when its first sequence begins. An adapter that is replaced before is no reason to fail.

    Args:
        chosen: names and factors.
    """

    def __init__(self, chosen: Sequence[tuple[str, float]], find: Find, memory: AdapterMemory):
        self.chosen = tuple(chosen)
        self._find, self._memory = find, memory
        self._versions: tuple[AdapterVersion, ...] = ()
        self._num_sequences = 0
        self._lock = threading.Lock()  # guards the two fields above

    @property
    def cache_salt(self) -> bytes:
        weights = (weight for _, weight in self.chosen)
        return "|".join(
            f"{version.variant}*{weight!r}" for version, weight in zip(self._versions, weights, strict=True)
        ).encode()

    def begin(self) -> None:
        with self._lock:
            if not self._num_sequences:
                self._versions = tuple(self._current(name) for name, _ in self.chosen)
            self._memory.begin(self._versions)
            self._num_sequences += 1

    def end(self) -> None:
        with self._lock:
            self._num_sequences -= 1
            self._memory.end(self._versions)

    def acquire(self) -> bool:
        return self._memory.acquire(self._versions)

    def release(self) -> None:
        self._memory.release(self._versions)

    @property
    def chunk_weights(self) -> ChunkWeights:
        return ChunkWeights(
            adapters=tuple(
                WeightedAdapter(self._memory.lora(version), weight)
                for version, (_, weight) in zip(self._versions, self.chosen, strict=True)
            )
        )

    def _current(self, name: str) -> AdapterVersion:
        version = self._find(name)
        if version is None:
            raise UnknownAdapterError(f"the adapter {name!r} was unloaded; choose another one", "model")
        return version
