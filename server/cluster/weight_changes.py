"""Changes of a replica's adapters and variants, which can be undone or taken over from another replica."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

from server.cluster.wire import ServedAdapter, ServedWeights, WeightChange
from server.engine.interface import EngineUnavailableError
from server.loading.load import LoadedServer

MAX_UNDOABLE = 16


class WeightChanges:
    """Loads and unloads adapters and variants of a replica. Its methods may block, but not ``confirm``.

    Threads may use it: changes are made one after the other.
    """

    def __init__(self, loaded: LoadedServer):
        self._loaded = loaded
        self._changed_at = self._refused_at = 0.0
        self._undoable: OrderedDict[str, Callable[[], None]] = OrderedDict()
        self._changing = Lock()

    def served(self) -> ServedWeights:
        """Return the weights that are served now."""
        registry = None if self._loaded.adapters is None else self._loaded.adapters.registry
        adapters = {}
        for version, _ in [] if registry is None else registry.versions():
            reason = None if registry is None else registry.reason_against_tokens(version.name)
            adapters[version.name] = ServedAdapter(version.name, version.folder, version.by_token, reason)
        return ServedWeights(
            self._changed_at,
            adapters,
            [] if registry is None else registry.candidates(),
            self._variants(),
        )

    def names(self) -> frozenset[str]:
        """Return the names of what ``served`` returns, without looking at each."""
        adapters = [] if self._loaded.adapters is None else self._loaded.adapters.registry.names()
        return frozenset((*adapters, *self._loaded.variants.names()))

    def make(self, change: WeightChange) -> Any:
        """Call ``load`` or ``unload`` of the adapters or the variants.

        Raises:
            EngineError: it can't be done; nothing has changed.
        """
        part, name, method = change.part, str(change.arguments[0]), change.method
        if method not in {"load", "unload"}:
            raise EngineUnavailableError(f"{method} is no change of weights")
        with self._changing:
            before = self._folder(part, name)
            value = getattr(self._changer(part), method)(*change.arguments, **change.named)
            self._undoable[change.id] = lambda: self._restore(part, name, before)
            while len(self._undoable) > MAX_UNDOABLE:
                self._undoable.popitem(last=False)
            return value

    def confirm(self, change: WeightChange) -> None:
        """Count a change that all replicas have made as the last one, which those that start later take over."""
        self._undoable.pop(change.id, None)
        self._changed_at = max(self._changed_at, change.made_at)

    def undo(self, change: str) -> None:
        """Undo a change, if it was made here.

        Raises:
            EngineError: it can't be undone.
        """
        with self._changing:
            undo = self._undoable.pop(change, None)
            if undo is not None:
                undo()

    def adopt(self, other: ServedWeights) -> None:
        """Serve what another replica serves, from the same folders, if its last change is later than that of this one.

        Returns once they are served, though another call may load them.

        Raises:
            EngineError: one of the weights can't be loaded here.
        """
        with self._changing:
            if other.changed_at <= max(self._changed_at, self._refused_at):
                return
            self._refused_at = other.changed_at  # until it has succeeded
            mine = self.served()
            adapters = {name: adapter.folder for name, adapter in other.adapters.items()}
            for part, theirs, own in (
                ("adapters", adapters, {name: adapter.folder for name, adapter in mine.adapters.items()}),
                ("variants", dict(other.variants), dict(mine.variants)),
            ):
                for name in theirs.keys() | own.keys():
                    if theirs.get(name) != own.get(name):  # what is the same stays
                        self._restore(part, name, theirs.get(name))
            self._changed_at = other.changed_at

    def _variants(self) -> dict[str, Path]:
        found = {name: self._loaded.variants.find(name) for name in self._loaded.variants.names()}
        return {name: version.folder for name, version in found.items() if version is not None}

    def _changer(self, part: str) -> Any:
        """Return what loads weights."""
        adapters = self._loaded.adapters
        if part == "adapters_on_request" and adapters is not None:
            return adapters.on_request
        return self._owner(part)

    def _owner(self, part: str) -> Any:
        """Return the registry of weights."""
        if part == "variants":
            return self._loaded.variants
        if self._loaded.adapters is None:
            raise EngineUnavailableError("this replica loads no adapters; set adapters_dir for all of them")
        return self._loaded.adapters.registry

    def _folder(self, part: str, name: str) -> Path | None:
        version = self._owner(part).find(name)
        return None if version is None else Path(version.folder)

    def _restore(self, part: str, name: str, folder: Path | None) -> None:
        """Serve what is in a folder under a name; None: nothing."""
        owner = self._owner(part)
        if self._folder(part, name) == folder:
            return
        if owner.find(name) is not None:
            owner.unload(name)
        if folder is not None:
            owner.load_own(name, str(folder))
