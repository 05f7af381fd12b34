"""AdapterSelection: the adapters of one request."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from server.engine.interface import TokenRouting, UnknownAdapterError
from server.model.chunk_weights import AdapterRouter, ChunkWeights, RoutedTokens, WeightedAdapter
from server.weights.adapter_memory import AdapterMemory
from server.weights.adapter_version import AdapterVersion

Find = Callable[[str], AdapterVersion | None]  # the current version of an adapter


class AdapterSelection:
    """The ``RequestWeights`` of a request with adapters.

    Their versions are those when its first sequence begins. An adapter that is replaced before is no reason to fail.

    Args:
        chosen: names and factors.
        routing: with the names of adapters, none of which is in ``chosen``; None if no router chooses adapters.
        note: is called with numbers of tokens by adapter with a fixed factor, and with the shares of other adapters in
            tokens that a router chose adapters for.
    """

    def __init__(
        self,
        chosen: Sequence[tuple[str, float]],
        find: Find,
        memory: AdapterMemory,
        routing: TokenRouting | None = None,
        note: Callable[[Mapping[str, int], Mapping[str, float]], object] = lambda _, __: None,
    ):
        self.chosen, self.routing = tuple(chosen), routing
        self._find, self._memory, self._note = find, memory, note
        self._versions: tuple[AdapterVersion, ...] = ()  # of the chosen ones, then of those to choose from
        self._num_sequences = 0
        self._shares: Counter[str] = Counter()
        self._num_tokens = 0
        self._lock = threading.Lock()  # guards the four fields above

    @property
    def cache_salt(self) -> bytes:
        weights = (weight for _, weight in self.chosen)
        fixed = "|".join(
            f"{version.variant}*{weight!r}" for version, weight in zip(self._versions, weights, strict=False)
        )
        if self.routing is None:
            return fixed.encode()
        names = [version.variant for version in self._versions[len(self.chosen) :]]
        return f"{fixed}|arrow {self.routing.top_k} {self.routing.temperature!r} {names}".encode()

    def begin(self) -> None:
        with self._lock:
            if not self._num_sequences:
                routed = () if self.routing is None else self.routing.adapters or ()
                self._versions = tuple(map(self._current, [*(name for name, _ in self.chosen), *routed]))
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

    def note_tokens(self, num_tokens: int, routed: RoutedTokens | None) -> None:
        shares = {} if routed is None else routed.shares
        if routed is not None:
            with self._lock:
                self._shares.update(shares)
                self._num_tokens += routed.num_tokens
        self._note({name: num_tokens for name, _ in self.chosen}, shares)

    @property
    def routed_shares(self) -> Mapping[str, float]:
        names = () if self.routing is None else self.routing.adapters or ()
        with self._lock:
            return {name: self._shares[name] / max(1, self._num_tokens) for name in names}

    @property
    def chunk_weights(self) -> ChunkWeights:
        adapters = [self._memory.lora(version) for version in self._versions]
        fixed = tuple(
            WeightedAdapter(adapter, weight) for adapter, (_, weight) in zip(adapters, self.chosen, strict=False)
        )
        if self.routing is None:
            return ChunkWeights(adapters=fixed)
        router = AdapterRouter(tuple(adapters[len(fixed) :]), self.routing.top_k, self.routing.temperature)
        return ChunkWeights(adapters=fixed, router=router)

    def _current(self, name: str) -> AdapterVersion:
        version = self._find(name)
        if version is None:
            raise UnknownAdapterError(f"the adapter {name!r} was unloaded; choose another one", "model")
        return version
