"""AdapterSelection: the adapters of one request."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

from server.engine.interface import ChoiceByToken, ExpertUsage, Timeline, UnknownAdapterError
from server.model.chunk_weights import AdapterChooser, ChosenAdapters, ChunkWeights, WeightedAdapter
from server.model.lora_adapter import ExpertTarget
from server.weights.adapter_memory import AdapterMemory
from server.weights.adapter_version import AdapterVersion, GateVersion, Version

Find = Callable[[str], Version | None]  # the current version of an adapter or a mixture
NoteRequest = Callable[[Sequence[str], ExpertUsage, Timeline, int], None]


class AdapterSelection:
    """The ``SequenceWeights`` of a request with adapters.

    Their versions are those when its first sequence begins. An adapter that is replaced before is no reason to fail.

    Args:
        chosen: names and factors.
        by_token: with the names of adapters, none of which is in ``chosen``, or with the name of a mixture, whose
            version when the first sequence begins replaces it; None if no router chooses adapters.
        note: is called with numbers of tokens by adapter with a fixed factor, and with the shares of other adapters in
            tokens that a router chose adapters for.
        note_request: is called with the names of all adapters of a sequence that has ended, and its cost.
    """

    def __init__(
        self,
        chosen: Sequence[tuple[str, float]],
        find: Find,
        memory: AdapterMemory,
        *,
        by_token: ChoiceByToken | None = None,
        note: Callable[[Mapping[str, int], Mapping[str, float]], object] = lambda _, __: None,
        note_request: NoteRequest = lambda _, __, ___, ____: None,
    ):
        self.chosen, self.by_token = tuple(chosen), by_token
        self._find, self._memory, self._note, self._note_request = find, memory, note, note_request
        self._versions: tuple[AdapterVersion, ...] = ()  # of the chosen ones, then of those to choose from
        self._num_sequences = 0
        self._lock = threading.Lock()  # guards the two fields above, and ``by_token`` while it changes

    @property
    def cache_salt(self) -> bytes:
        weights = (weight for _, weight in self.chosen)
        fixed = "|".join(
            f"{version.variant}*{weight!r}" for version, weight in zip(self._versions, weights, strict=False)
        )
        if self.by_token is None:
            return fixed.encode()
        names = [version.variant for version in self._versions[len(self.chosen) :]]
        return f"{fixed}|routed {self.by_token.top_k} {self.by_token.temperature!r} {names}".encode()

    @property
    def targets(self) -> frozenset[str | ExpertTarget]:
        """The matrices that its adapters add to; valid as ``versions`` is."""
        return frozenset().union(*(version.files.targets for version in self._versions))

    @property
    def versions(self) -> tuple[str, ...]:
        return tuple(version.variant for version in self._versions)

    def begin(self) -> None:
        with self._lock:
            if not self._num_sequences:
                self._versions = (*(self._adapter(name) for name, _ in self.chosen), *self._routed())
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

    def note_tokens(self, num_tokens: int, routed: ChosenAdapters | None) -> None:
        self._note({name: num_tokens for name, _ in self.chosen}, {} if routed is None else routed.shares)

    def note_request(self, usage: ExpertUsage, timeline: Timeline, num_generated: int) -> None:
        self._note_request([version.name for version in self._versions], usage, timeline, num_generated)

    @property
    def chunk_weights(self) -> ChunkWeights:
        adapters = [self._memory.lora(version) for version in self._versions]
        fixed = tuple(
            WeightedAdapter(adapter, weight) for adapter, (_, weight) in zip(adapters, self.chosen, strict=False)
        )
        by_token = self.by_token
        if by_token is None:
            return ChunkWeights(adapters=fixed)
        is_signed = by_token.gate is not None
        router = AdapterChooser(tuple(adapters[len(fixed) :]), by_token.top_k, by_token.temperature, is_signed)
        return ChunkWeights(adapters=fixed, chooser=router)

    def _routed(self) -> Sequence[AdapterVersion]:
        """Return the adapters that a router chooses from."""
        by_token = self.by_token
        if by_token is None:
            return ()
        if by_token.gate is None:
            return [self._adapter(name) for name in by_token.adapters or ()]
        mixture = self._find(by_token.gate)
        if not isinstance(mixture, GateVersion):
            raise UnknownAdapterError(f"the mixture {by_token.gate!r} was unloaded; choose another model", "model")
        self.by_token = mixture.by_token
        return mixture.parts

    def _adapter(self, name: str) -> AdapterVersion:
        version = self._find(name)
        if not isinstance(version, AdapterVersion):
            raise UnknownAdapterError(f"the adapter {name!r} was unloaded; choose another one", "model")
        return version
