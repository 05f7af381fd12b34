"""Directory: what the names in requests mean beside the base model."""

from __future__ import annotations

from collections.abc import Sequence

from server.engine.interface import RequestRefusedError, RequestWeights, RoutingCandidate, UnknownAdapterError
from server.weights.adapter_memory import AdapterMemory
from server.weights.adapter_registry import AdapterRegistry
from server.weights.adapter_selection import AdapterSelection

MAX_ADAPTERS = 16  # of one request


class Directory:
    """A ``WeightsDirectory`` over the registered adapters."""

    def __init__(self, adapters: AdapterRegistry, memory: AdapterMemory):
        self._adapters, self._memory = adapters, memory

    def names(self) -> list[str]:
        return self._adapters.names()

    def root(self, name: str) -> str | None:
        version = self._adapters.find(name)
        return None if version is None else str(version.files.folder)

    def candidates(self) -> list[RoutingCandidate]:
        return self._adapters.candidates()

    def note_routed(self, name: str | None) -> None:
        self._adapters.note_routed(name)

    def resolve(self, name: str | None, adapters: Sequence[tuple[str, float]] = ()) -> RequestWeights | None:
        if name is not None and self._adapters.find(name) is None:
            raise UnknownAdapterError(f"there is no adapter {name!r}", "model")
        chosen = [*([] if name is None else [(name, 1.0)]), *adapters]
        if len(chosen) > MAX_ADAPTERS:
            raise RequestRefusedError(f"a request may use at most {MAX_ADAPTERS} adapters", "adapters")
        names = [each for each, _ in chosen]
        for each in names:
            if self._adapters.find(each) is None:
                raise UnknownAdapterError(f"there is no adapter {each!r}; see GET /v1/models", "adapters")
            if names.count(each) > 1:
                raise RequestRefusedError(f"the adapter {each!r} is chosen twice; name it once", "adapters")
        return AdapterSelection(chosen, self._adapters.find, self._memory) if chosen else None
