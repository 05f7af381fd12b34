"""Administration of the experts, adapters and variants of all replicas, by the protocols of the engine's interface."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from secrets import token_bytes
from typing import Any, Protocol
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from expert_store.load_balance import LayerBalance, LoadBalance
from server.administration.expert_snapshot import ExpertSample, snapshot, update
from server.cluster.kept_counts import SECRET_BYTES, Counts, MetricsPage
from server.cluster.merged_json import merged
from server.cluster.merged_metrics import merge_metrics
from server.cluster.wire import Outcome, WeightChange
from server.engine.interface import (
    AccessPolicy,
    AdapterExamples,
    ChangedExperts,
    EngineUnavailableError,
    ExpertChange,
    ExpertPlace,
    JsonObject,
)
from server.observability.metric_families import hashed

log = logging.getLogger(__name__)


class Callers(Protocol):
    """Calls of replicas that block. Make them off the event loop."""

    def call_all(self, method: str, *arguments: Any) -> list[Outcome]:
        """Call a method of every replica; one that does not answer has an error as its outcome."""

    def exchange_counts(self, counts: Counts) -> Counts:
        """Give counts of replicas to what keeps them, and return what it has beyond.

        Raises:
            EngineUnavailableError: it does not answer.
        """


class Administration:
    """Asks all replicas, and makes one answer of theirs. Its methods may block.

    Args:
        after_change: called when weights have changed.
    """

    def __init__(self, replicas: Callers, after_change: Callable[[], None]):
        self._replicas, self._after_change = replicas, after_change
        self._counts, self._secret = Counts(), token_bytes(SECRET_BYTES)  # until that of all ingresses is known
        self._counting = threading.Lock()  # guards the counts

    def ask(self, part: str, method: str, *arguments: Any) -> list[Any]:
        """Return what each replica that answers says.

        Raises:
            EngineError: they refuse, or none answers.
        """
        outcomes = self._replicas.call_all("call", part, method, *arguments)
        errors = [outcome.error for outcome in outcomes if outcome.error is not None]
        if len(errors) == len(outcomes):
            raise errors[0] if errors else EngineUnavailableError("no replica answers: try again later")
        return [outcome.value for outcome in outcomes if outcome.error is None]

    def ask_every(self, part: str, method: str, *arguments: Any) -> list[Any]:
        """Return what each replica says.

        Raises:
            EngineError: one refuses, or does not answer.
        """
        outcomes = self._replicas.call_all("call", part, method, *arguments)
        _raise_first(outcomes)
        return [outcome.value for outcome in outcomes]

    def change(self, part: str, method: str, *arguments: Any, **named: Any) -> Any:
        """Change the weights of all replicas, or of none, and return what the first one says.

        Raises:
            EngineError: one can't; the others have undone the change.
        """
        change = WeightChange(uuid4().hex, time.time(), part, method, arguments, named)
        outcomes = self._replicas.call_all("change_weights", change)
        try:
            _raise_first(outcomes)
        except Exception:
            if any(outcome.error is None for outcome in outcomes):
                log.warning("%s.%s is undone, as not every replica could do it", part, method)
                self._replicas.call_all("undo_change", change.id)
            raise
        else:
            self._replicas.call_all("confirm_change", change)
        finally:
            self._after_change()
        return outcomes[0].value

    def metrics(self, *, hides_names: bool = False) -> bytes:
        """Return the metrics of all replicas that answer, with what others have counted until they were gone."""
        outcomes = self._replicas.call_all("render_metrics")
        told: dict[str, MetricsPage] = {each.replica: each.value for each in outcomes if each.error is None}
        with self._counting:
            known = self._counts.joined(Counts(told))
        try:
            known = known.joined(self._replicas.exchange_counts(known))
        except EngineUnavailableError as error:
            log.warning("%s", error)
        with self._counting:
            counts = self._counts = self._counts.joined(known)
        pages = {name: page.text for name, page in counts.pages.items()}
        live = {name: pages.pop(name) for name in told if name in pages}
        hide = partial(hashed, secret=counts.secret or self._secret) if hides_names else None
        return merge_metrics(live, [*pages.values(), counts.sums], hide)

    def prepare(self, policies: list[AccessPolicy]) -> None:
        """Let all replicas check policies; see ``WeightsDirectory.prepare``."""
        self.ask_every("directory", "prepare", policies)


class RemoteExperts:
    """An ``ExpertAdministration`` of all replicas: an expert is where the replica that has it fastest has it."""

    def __init__(self, administration: Administration, model: str):
        self._administration, self._model = administration, model
        self._tokens: npt.NDArray[np.int64] | None = None  # of the last sample
        self._balance: LoadBalance | None = None
        self._lock = threading.Lock()  # guards both

    def overview(self) -> JsonObject:
        views = self._administration.ask("experts", "overview")
        return {**merged(views), "replicas": len(views)}

    def find(self, layer: int, expert: int) -> JsonObject | None:
        found: JsonObject | None = merged(self._administration.ask("experts", "find", layer, expert))
        return found

    def change(self, action: ExpertChange, places: Sequence[ExpertPlace]) -> ChangedExperts:
        changes: list[ChangedExperts] = self._administration.ask_every("experts", "change", action, list(places))
        unchanged: dict[str, set[ExpertPlace]] = {}
        for change in changes:
            for reason, left in (change.unchanged or {}).items():
                unchanged.setdefault(reason, set()).update(left)
        is_eviction = any(change.unchanged is not None for change in changes)
        return ChangedExperts(
            max(change.num_changed for change in changes),
            {reason: sorted(left) for reason, left in unchanged.items()} if is_eviction else None,
        )

    def sample(self) -> ExpertSample:
        samples: list[ExpertSample] = self._administration.ask("experts", "sample")
        first, tokens = samples[0], np.sum([each.tokens for each in samples], axis=0)
        return ExpertSample(
            first.num_experts,
            np.maximum.reduce([each.residency for each in samples]),
            tokens,
            pinned=frozenset().union(*(each.pinned for each in samples)),
            balance=self._load_balance(first.num_experts, tokens),
            totals=merged([each.totals for each in samples]),
        )

    def snapshot(self, sample: ExpertSample) -> JsonObject:
        return {"model": self._model, **snapshot(sample)}

    def update(self, before: ExpertSample, sample: ExpertSample) -> JsonObject:
        return update(before, sample)

    def totals(self) -> JsonObject:
        """Return the totals of all replicas, as ``StoreAdministration.totals``."""
        totals: JsonObject = merged(self._administration.ask("experts", "totals"))
        return totals

    def _load_balance(self, num_experts: Mapping[int, int], tokens: npt.NDArray[np.int64]) -> tuple[LayerBalance, ...]:
        """Return the balance of the tokens of all replicas together."""
        with self._lock:
            if self._balance is None or self._tokens is None or (tokens < self._tokens).any():  # a replica is gone
                self._balance = LoadBalance(num_experts)
            self._tokens = tokens
            return self._balance.recent(tokens)


class RemoteAdapters:
    """An ``AdapterAdministration`` of all replicas."""

    def __init__(self, administration: Administration):
        self._administration = administration

    def load(self, name: str, path: str, *, replace: bool = False, examples: AdapterExamples | None = None) -> bool:
        return bool(self._administration.change("adapters", "load", name, path, replace=replace, examples=examples))

    def unload(self, name: str) -> None:
        self._administration.change("adapters", "unload", name)

    def folders(self) -> list[str] | None:
        folders: list[str] | None = self._administration.ask("adapters", "folders")[0]
        return folders

    def overview(self) -> JsonObject:
        overview: JsonObject = merged(self._administration.ask("adapters", "overview"))
        return overview


class RemoteAdapterLoader:
    """An ``AdapterLoader`` that loads the adapters which requests name into all replicas."""

    def __init__(self, administration: Administration):
        self._administration = administration

    def load(self, name: str) -> bool:
        return bool(self._administration.change("adapters_on_request", "load", name))


class RemoteVariants:
    """A ``VariantAdministration`` of all replicas."""

    def __init__(self, administration: Administration):
        self._administration = administration

    def load(self, name: str, path: str) -> JsonObject:
        variant: JsonObject = self._administration.change("variants", "load", name, path)
        return variant

    def unload(self, name: str) -> None:
        self._administration.change("variants", "unload", name)

    def folders(self) -> list[str] | None:
        folders: list[str] | None = self._administration.ask("variants", "folders")[0]
        return folders

    def overview(self) -> JsonObject:
        overview: JsonObject = merged(self._administration.ask("variants", "overview"))
        return overview


def _raise_first(outcomes: Sequence[Outcome]) -> None:
    if not outcomes:
        raise EngineUnavailableError("no replica answers: try again later")
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
