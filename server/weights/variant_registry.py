"""VariantRegistry: the expert variants by the names under which they are served."""

from __future__ import annotations

import itertools
import logging
import re
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from expert_store import ExpertKey, ExpertStore, ExpertStoreError
from server.byte_sizes import format_bytes
from server.engine.interface import ExpertUsage, RequestRefusedError, Timeline, UnknownVariantError
from server.model.adapters.errors import AdapterError
from server.model.checkpoint.local_files import GGUF
from server.model.errors import ModelError
from server.model.lora.peft_config import CONFIG_NAME as ADAPTER_CONFIG
from server.model.lora.peft_files import locate, without_root
from server.model.opening.variant_files import BASE_FIELD, BaseModel, VariantFiles, read_variant
from server.weights.loadable_folders import list_folders
from server.weights.request_costs import CostsByName, RequestCosts
from server.weights.saved_state import Journal

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
NO_FOLDER = "no expert weights may be loaded, because the server was started without --experts-dir"

log = logging.getLogger(__name__)

_numbers = itertools.count(1)


@dataclass(eq=False)
class VariantVersion:
    """A variant as it was when it was loaded. The registry's lock guards the fields that change."""

    name: str
    folder: Path
    files: VariantFiles
    is_retired: bool = False  # its name was unloaded, or has another version now
    num_sequences: int = 0  # sequences that have begun and not ended
    num_total: int = 0  # sequences that have begun since it was loaded

    @property
    def version(self) -> str:
        return self.files.variant.version


class VariantUse(NamedTuple):
    """The use of a variant's name."""

    name: str
    num_requests: int  # sequences that have begun, with all versions
    num_tokens: int  # rows that its own experts were run on


def _has_shards(names: Collection[str]) -> bool:
    """Return True if the names in a folder are those of a checkpoint, and not of an adapter."""
    return ADAPTER_CONFIG not in names and any(name.endswith((".safetensors", GGUF)) for name in names)


@dataclass
class _Totals:
    """Counts of a name's earlier versions."""

    sequences: int = 0
    tokens: int = 0


class VariantRegistry:
    """A ``VariantAdministration``: loads, replaces and unloads variants while requests use them. Thread-safe.

    Loading reads and checks all of a variant. Its experts go to memory when a token is routed to them, or before where
    all experts fit.

    Args:
        store: the base model's.
        make_base: returns the base model, for the first variant that is loaded.
        find_fingerprint: returns the base model's fingerprint, and keeps it.
        folder: the folder below which variants are; None if none may be loaded.
        on_change: called after the number of experts has changed.
        on_drop: called with the version of a variant that no sequence uses or will use.
    """

    def __init__(
        self,
        store: ExpertStore,
        make_base: Callable[[], BaseModel],
        find_fingerprint: Callable[[], str],
        *,
        folder: Path | None,
        on_change: Callable[[], None] = lambda: None,
        on_drop: Callable[[str], None] = lambda _: None,
    ):
        self._store, self._make_base, self._folder = store, make_base, folder
        self._on_change, self._on_drop = on_change, on_drop
        self._find_fingerprint = find_fingerprint
        self.journal: Journal | None = None  # of what is loaded and unloaded from now on
        self._current: Mapping[str, VariantVersion] = {}  # replaced, never changed
        self._totals: dict[str, _Totals] = {}
        self._costs = CostsByName()  # of ended sequences
        self._loading = threading.Lock()  # held while a variant is loaded or unloaded
        self._lock = threading.Lock()  # guards counts, current versions and totals; taken before the store's lock

    @cached_property
    def _base(self) -> BaseModel:
        return self._make_base()

    def find(self, name: str) -> VariantVersion | None:
        """Return the current version of a variant."""
        return self._current.get(name)

    def names(self) -> list[str]:
        return list(self._current)

    def begin(self, name: str) -> VariantVersion:
        """Count a sequence, and return the version that it uses.

        Raises:
            RequestRefusedError: the variant was unloaded.
        """
        with self._lock:
            version = self._current.get(name)
            if version is None:
                raise RequestRefusedError(f"the variant {name!r} was unloaded; choose another model", "model")
            version.num_sequences += 1
            version.num_total += 1
        return version

    def begin_again(self, version: VariantVersion) -> None:
        """Count one more sequence of a request that uses a version already."""
        with self._lock:
            version.num_sequences += 1
            version.num_total += 1

    def end(self, version: VariantVersion) -> None:
        """End the use that ``begin`` counted; a variant that was unloaded meanwhile goes with its last sequence."""
        with self._lock:
            version.num_sequences -= 1
            is_unused = version.is_retired and not version.num_sequences
        if is_unused:
            self._drop(version)

    def load(self, name: str, path: str) -> dict[str, Any]:
        if self._folder is None:
            raise RequestRefusedError(NO_FOLDER, "path")
        return self._load(name, path, self._folder)

    def load_own(self, name: str, path: str) -> None:
        """Load a variant of the server's operator, from any path.

        Raises:
            RequestRefusedError: it can't be served.
        """
        self._load(name, path, None)

    def _load(self, name: str, path: str, root: Path | None) -> dict[str, Any]:
        if not NAME.fullmatch(name):
            raise RequestRefusedError(
                f"{name[:80]!r} can't be the name of a variant; use up to 64 letters, digits and . _ -", "name"
            )
        with self._loading:
            number = next(_numbers)
            try:
                folder = locate(path, root)
                files = read_variant(folder, name, f"{name}@{number}", self._base)
                self._store.add_variant(files.variant.version, files.recipes)
            except (AdapterError, ExpertStoreError, ModelError, OSError) as error:
                reason = without_root(str(error), root, "--experts-dir")
                raise RequestRefusedError(f"{path} can't be loaded: {reason}", "path") from error
            version = VariantVersion(name, folder, files)
            with self._lock:
                old = self._current.get(name)
                self._current = {**self._current, name: version}
            if old is not None:
                self._retire(old)
            self._on_change()
            if self.journal is not None:
                self.journal.loaded(name, path)
        log.info(
            "expert variant %s: %s from %s; %d tensors, %d experts, %s",
            name,
            "loaded" if old is None else "replaced",
            folder,
            files.num_tensors,
            len(files.recipes),
            format_bytes(files.nbytes),
        )
        return {**self._describe(version), "replaced": old is not None}

    def unload(self, name: str) -> None:
        with self._loading:
            with self._lock:
                version = self._current.get(name)
                if version is None:
                    raise UnknownVariantError(f"there is no variant {name!r}", "name")
                self._current = {each: other for each, other in self._current.items() if each != name}
            self._retire(version)
            with self._lock:
                self._totals.pop(name, None)
                self._costs.drop(name)
            self._on_change()
            if self.journal is not None:
                self.journal.unloaded(name)
        log.info("expert variant %s: unloaded", name)

    def folders(self) -> list[str] | None:
        return list_folders(self._folder, "--experts-dir", _has_shards)

    def overview(self) -> dict[str, Any]:
        return {
            "folder": None if self._folder is None else str(self._folder.absolute()),
            BASE_FIELD: self._find_fingerprint(),
            "data": [self._describe(version) for version in self._current.values()],
        }

    def uses(self) -> list[VariantUse]:
        """Return the use of each variant that can be chosen."""
        tokens = self._store.statistics().variant_tokens
        with self._lock:
            return [
                VariantUse(
                    name,
                    version.num_total + self._totals.get(name, _Totals()).sequences,
                    tokens[version.version] + self._totals.get(name, _Totals()).tokens,
                )
                for name, version in self._current.items()
            ]

    def note_request(self, name: str, usage: ExpertUsage, timeline: Timeline, num_generated: int) -> None:
        """Count a sequence with a variant that has ended."""
        with self._lock:  # so that nothing is counted of a name that is unloaded meanwhile
            if name in self._current:
                self._costs.add([name], usage, timeline, num_generated)

    def costs(self) -> list[tuple[str, RequestCosts]]:
        """Return the costs of the ended sequences of each variant."""
        return self._costs.of(self._current)

    def _retire(self, version: VariantVersion) -> None:
        """Drop a version as soon as no sequence uses it."""
        with self._lock:
            version.is_retired = True
            is_unused = not version.num_sequences
            totals = self._totals.setdefault(version.name, _Totals())
            totals.sequences += version.num_total
        if is_unused:
            self._drop(version)

    def _drop(self, version: VariantVersion) -> None:
        num_tokens = self._store.remove_variant(version.version)
        with self._lock:
            if version.name in self._current:
                self._totals.setdefault(version.name, _Totals()).tokens += num_tokens
        self._on_drop(version.version)

    def _describe(self, version: VariantVersion) -> dict[str, Any]:
        files = version.files
        residents = self._store.residents()
        tokens = self._store.statistics().variant_tokens
        keys = [ExpertKey(*place, version.version) for place in files.recipes]
        layers = files.variant.layers
        own = self._store.catalog.layers
        num_added = sum(expert >= len(own[layer].experts) for layer, expert in files.recipes)
        num_removed = sum(
            len(own[layer].experts) - sum(key.expert < len(own[layer].experts) for key in each.keys)
            for layer, each in layers.items()
        )
        return {
            "name": version.name,
            "path": str(version.folder),
            "version": int(version.version.rpartition("@")[2]),
            "experts": len(files.recipes),
            "experts_added": num_added,
            "experts_removed": num_removed,
            "layers": sorted(layers),
            "routers": sum(bool(each.router) for each in layers.values()),
            "tensors": files.num_tensors,
            "bytes": files.nbytes,
            "experts_resident": sum(key in residents for key in keys),
            "tokens": tokens[version.version],
            "requests": {"unfinished": version.num_sequences, "total": version.num_total},
        }
