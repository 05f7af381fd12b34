"""AdapterRegistry: the adapters by the names under which they are served."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from server.byte_sizes import format_bytes
from server.engine.interface import (
    AdapterCandidate,
    AdapterExamples,
    ExpertUsage,
    RequestRefusedError,
    Timeline,
    UnknownAdapterError,
)
from server.model.adapters.errors import AdapterError
from server.model.lora.gate_files import is_gate, read_gate
from server.model.lora.peft_files import locate, read_adapter, without_root
from server.model.lora.targets import LoraTargets
from server.model.lora_adapter import ExpertTarget
from server.weights.adapter_description import describe, summary
from server.weights.adapter_folders import has_adapter
from server.weights.adapter_memory import AdapterMemory
from server.weights.adapter_version import SEPARATOR, AdapterVersion, GateVersion, Version
from server.weights.examples_file import read_examples
from server.weights.loadable_folders import list_folders
from server.weights.request_costs import CostsByName, RequestCosts
from server.weights.saved_state import Journal

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
RESERVED = {"auto"}
NO_FOLDER = "no adapters may be loaded, because the server was started without --adapters-dir"

log = logging.getLogger(__name__)


class AdapterUse(NamedTuple):
    """The use of a registered adapter."""

    name: str
    num_requests: int  # sequences that have begun, with all versions of this name
    num_tokens: float  # computed with it; of one that a router chose for each token, its share
    is_resident: bool


class AdapterMemoryUse(NamedTuple):
    """The memory of adapters, and what was loaded and evicted since the start."""

    budget_bytes: int
    resident_bytes: int
    page_bytes: int
    loads: int  # pages read
    evictions: int  # pages
    load_failures: int  # adapters that could not be loaded for a request


class AdapterRegistry:
    """An ``AdapterAdministration``: loads, replaces and unloads adapters while requests use them. Thread-safe.

    Loading reads and checks all of an adapter. Its pages go to memory when the first request needs them.

    Args:
        targets: the matrices of the model.
        memory: where adapters are loaded to.
        folder: the folder below which they are; None if none may be loaded.
        taken: names of models, which no adapter may have.
        find_fingerprint: returns that of the model, which a gate may ask for.
    """

    def __init__(
        self,
        targets: LoraTargets,
        memory: AdapterMemory,
        folder: Path | None,
        taken: Collection[str] = (),
        find_fingerprint: Callable[[], str] = lambda: "unknown",
    ):
        self.targets, self._memory, self._folder, self._taken = targets, memory, folder, frozenset(taken)
        self._find_fingerprint = find_fingerprint
        self.journal: Journal | None = None  # of what is loaded and unloaded from now on
        self._current: Mapping[str, Version] = {}  # replaced, never changed
        self._candidates: list[AdapterCandidate] = []  # of the current versions; replaced with them
        self._totals: dict[str, int] = {}  # sequences that used earlier versions of a registered name
        self._num_routed: dict[str | None, int] = {None: 0}  # requests by chosen name; None: the base model
        self._fixed_tokens: dict[str, float] = {}  # tokens computed with an adapter of a fixed weight
        self._routed_tokens: dict[str, float] = {}  # shares of adapters in tokens that had adapters chosen for each
        self._costs = CostsByName()  # of ended sequences
        self._routed_lock = threading.Lock()  # guards the four fields above
        self._lock = threading.Lock()  # held while an adapter is loaded or unloaded

    def find(self, name: str) -> Version | None:
        """Return the current version of an adapter or a mixture."""
        return self._current.get(name)

    def names(self) -> list[str]:
        return list(self._current)

    def uses(self) -> list[AdapterUse]:
        """Return the use of each adapter."""
        resident, tokens = self._memory.store.resident_pages(), self.num_tokens()
        return [
            AdapterUse(version.name, total, tokens.get(version.name, 0.0), _is_resident(version, resident))
            for version, total in self.versions()
        ]

    def memory_use(self) -> AdapterMemoryUse:
        store = self._memory.store
        statistics = store.statistics()
        return AdapterMemoryUse(
            budget_bytes=store.num_slots * store.page_bytes,
            resident_bytes=store.resident_bytes,
            page_bytes=store.page_bytes,
            loads=sum(sum(load.buckets) for load in statistics.loads.values()),
            evictions=sum(statistics.evictions.values()),
            load_failures=self._memory.num_failures,
        )

    def versions(self) -> list[tuple[Version, int]]:
        """Return all current versions, and the number of sequences that have used each name."""
        totals = self._totals
        return [(version, version.num_total + totals.get(name, 0)) for name, version in self._current.items()]

    def candidates(self) -> list[AdapterCandidate]:
        """Return the adapters that have examples or a description."""
        return self._candidates

    def note_routed(self, name: str | None) -> None:
        """Count a request that a router sent to an adapter, or to the base model."""
        with self._routed_lock:
            if name is None or name in self._current:
                self._num_routed[name] = self._num_routed.get(name, 0) + 1

    def num_routed(self) -> dict[str | None, int]:
        """Return the number of requests that a router sent to each candidate, and to the base model as None."""
        counts = self._num_routed
        names = [each.name for each in self.candidates()]
        return {name: counts.get(name, 0) for name in (None, *names)} if names or counts[None] else {}

    def note_tokens(self, fixed: Mapping[str, int], routed: Mapping[str, float]) -> None:
        """Count tokens that were computed with adapters.

        Args:
            fixed: numbers of tokens by adapter with a fixed weight.
            routed: shares of adapters in tokens for which a router chose adapters.
        """
        with self._routed_lock:
            for totals, counts in ((self._fixed_tokens, fixed), (self._routed_tokens, routed)):
                for name, count in counts.items():
                    if _registered(name) in self._current:
                        totals[name] = totals.get(name, 0.0) + count

    def note_request(self, names: Sequence[str], usage: ExpertUsage, timeline: Timeline, num_generated: int) -> None:
        """Count a sequence with some adapters that has ended."""
        with self._routed_lock:  # so that nothing is counted of a name that is unloaded meanwhile
            used = [name for name in map(_registered, names) if name in self._current]
            self._costs.add(used, usage, timeline, num_generated)

    def costs(self) -> list[tuple[str, RequestCosts]]:
        """Return the costs of the ended sequences of each adapter."""
        return self._costs.of(self._current)

    def routed_tokens(self) -> dict[str, float]:
        """Return the share of each adapter in tokens for which a router chose adapters."""
        with self._routed_lock:
            return {name: share for name, share in self._routed_tokens.items() if _registered(name) in self._current}

    def num_tokens(self) -> dict[str, float]:
        """Return the tokens that were computed with each adapter; of those with a choice for each, its share.

        All tokens of a mixture are its own.
        """
        with self._routed_lock:
            found = dict.fromkeys(self._current, 0.0)
            for name, count in (*self._fixed_tokens.items(), *self._routed_tokens.items()):
                if _registered(name) in found:
                    found[_registered(name)] += count
            return found

    def reason_against_tokens(self, name: str) -> str | None:
        """Return why a router can't choose an adapter for each token, as the end of a sentence; None if it can."""
        version = self._current.get(name)
        if version is None:
            return None
        if isinstance(version, GateVersion):
            return "it is a mixture with a gate of its own"
        targets = version.files.targets
        if any(isinstance(target, ExpertTarget) for target in targets):
            return "it adds to routed experts, and Arrow scores adapters of linear layers only"
        latent = next((target for target in targets if target in self.targets.latents), None)
        if latent is not None:
            return f"it adds to {latent}, which attention applies to the keys of all earlier tokens at once"
        return None

    def load(self, name: str, path: str, *, replace: bool = False, examples: AdapterExamples | None = None) -> bool:
        if self._folder is None:
            raise RequestRefusedError(NO_FOLDER, "lora_path")
        return self._load(name, path, self._folder, replace=replace, examples=examples)

    def load_own(self, name: str, path: str) -> None:
        """Load an adapter of the server's operator, from any path.

        Raises:
            RequestRefusedError: it can't be served.
        """
        self._load(name, path, None, replace=False)

    def unload(self, name: str) -> None:
        with self._lock:
            version = self._current.get(name)
            if version is None:
                raise UnknownAdapterError(f"there is no adapter {name!r}", "lora_name")
            self._replace({each: other for each, other in self._current.items() if each != name})
            self._totals = {each: total for each, total in self._totals.items() if each != name}
            with self._routed_lock:
                for counts in (self._num_routed, self._fixed_tokens, self._routed_tokens):
                    for each in [each for each in counts if each is not None and _registered(each) == name]:
                        del counts[each]
                self._costs.drop(name)
            self._retire(version)
            if self.journal is not None:
                self.journal.unloaded(name)
        log.info("adapter %s: unloaded", name)

    def folders(self) -> list[str] | None:
        return list_folders(self._folder, "--adapters-dir", has_adapter)

    def overview(self) -> dict[str, Any]:
        resident, tokens = self._memory.store.resident_pages(), self.num_tokens()
        return {
            "object": "adapters",
            "folder": None if self._folder is None else str(self._folder.absolute()),
            "memory": self.memory_use()._asdict(),
            "data": [
                {
                    **describe(version, total, _is_resident(version, resident)),
                    "tokens": round(tokens.get(version.name, 0.0)),
                    "token_routing": [] if self.reason_against_tokens(version.name) else ["arrow"],
                }
                for version, total in self.versions()
            ],
        }

    def _load(
        self, name: str, path: str, folder: Path | None, *, replace: bool, examples: AdapterExamples | None = None
    ) -> bool:
        self._check_name(name)
        with self._lock:
            old = self._current.get(name)
            if old is not None and not replace:
                raise RequestRefusedError(
                    f"the adapter {name!r} is loaded already; set 'load_inplace' to replace it", "lora_name"
                )
            try:
                version = self._read(name, locate(path, folder), folder, examples)
            except AdapterError as error:
                raise RequestRefusedError(without_root(str(error), folder, "--adapters-dir"), "lora_path") from error
            if version.num_pages > self._memory.store.num_slots:
                size = format_bytes(version.num_pages * self._memory.store.page_bytes)
                raise RequestRefusedError(
                    f"{path} takes {size} of memory, more than --adapter-memory; raise it", "lora_path"
                )
            if old is not None:
                self._totals = {**self._totals, name: self._totals.get(name, 0) + old.num_total}
            self._replace({**self._current, name: version})
            if old is not None:
                self._retire(old)
            if self.journal is not None:
                self.journal.loaded(name, path, examples)
        log.info(
            "adapter %s: %s from %s; %s",
            name,
            "loaded" if old is None else "replaced",
            version.folder,
            summary(version),
        )
        return old is not None

    def _read(self, name: str, path: Path, folder: Path | None, examples: AdapterExamples | None) -> Version:
        """Read and check the adapter or the mixture in a folder."""
        page_bytes = self._memory.store.page_bytes
        if is_gate(path):
            gate = read_gate(path, self.targets, page_bytes, self._find_fingerprint, folder)
            return GateVersion(name, gate, read_examples(path, folder) if examples is None else examples)
        files = read_adapter(path, self.targets, page_bytes, folder)
        return AdapterVersion(name, files, read_examples(path, folder) if examples is None else examples)

    def _retire(self, version: Version) -> None:
        for part in version.parts:
            self._memory.retire(part)

    def _replace(self, current: Mapping[str, Version]) -> None:
        self._current = current
        self._candidates = [
            AdapterCandidate(name, version.number, version.examples.texts)
            for name, version in current.items()
            if version.examples.texts
        ]

    def _check_name(self, name: str) -> None:
        if not NAME.fullmatch(name):
            raise RequestRefusedError(
                f"{name[:140]!r} can't be the name of an adapter; use up to 128 letters, digits and . _ - /",
                "lora_name",
            )
        if name in self._taken or name in RESERVED:
            raise RequestRefusedError(f"{name!r} is the name of a model; choose another one", "lora_name")


def _is_resident(version: Version, resident: Mapping[str, int]) -> bool:
    """Return True if all of an adapter is in memory; ``resident`` has the numbers of pages that are."""
    return all(resident.get(part.variant, 0) == part.num_pages for part in version.parts)


def _registered(name: str) -> str:
    """Return the name under which an adapter, or the mixture that it is part of, is registered."""
    return name.partition(SEPARATOR)[0]
