"""RemoteDirectory: the ingress's copy of the names of weights, so that no request waits for a replica to check them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast
from uuid import uuid4

from server.cluster.wire import ServedAdapter, ServedWeights
from server.engine.interface import AccessPolicy, AdapterCandidate, ChoiceByToken, RequestWeights
from server.weights.adapter_memory import AdapterMemory
from server.weights.adapter_registry import AdapterRegistry
from server.weights.directory import Directory
from server.weights.variant_registry import VariantRegistry


class _Variant(NamedTuple):
    folder: Any


class _Mirror:
    """Answers what a directory asks of registries, from the weights that replicas serve."""

    def __init__(self) -> None:
        self.weights = ServedWeights()


class _Adapters(_Mirror):
    def find(self, name: str) -> ServedAdapter | None:
        return self.weights.adapters.get(name)

    def names(self) -> list[str]:
        return list(self.weights.adapters)

    def candidates(self) -> list[AdapterCandidate]:
        return list(self.weights.candidates)

    def reason_against_tokens(self, name: str) -> str | None:
        adapter = self.weights.adapters.get(name)
        return None if adapter is None else adapter.reason_against_tokens


class _Variants(_Mirror):
    def find(self, name: str) -> _Variant | None:
        folder = self.weights.variants.get(name)
        return None if folder is None else _Variant(folder)

    def names(self) -> list[str]:
        return list(self.weights.variants)


class RemoteDirectory(Directory):
    """A ``Directory`` over what the replicas serve. They check the names again when they select the weights.

    Args:
        base: the name of the base model.
        loads_adapters: the replicas load adapters.
        prepare: lets all replicas check policies, as ``WeightsDirectory.prepare`` does.
        note_routed: tells a replica of a request that a router sent to some weights.
    """

    def __init__(
        self,
        base: str,
        *,
        loads_adapters: bool,
        prepare: Callable[[list[AccessPolicy]], None],
        note_routed: Callable[[str | None], None],
    ):
        self._mirrors = adapters, variants = _Adapters(), _Variants()
        registry = cast("AdapterRegistry", adapters)
        super().__init__(
            base,
            cast("VariantRegistry", variants),
            (registry, cast("AdapterMemory", adapters)) if loads_adapters else None,
        )
        self._prepare_all, self._note = prepare, note_routed

    @property
    def weights(self) -> ServedWeights:
        return self._mirrors[0].weights

    def mirror(self, weights: ServedWeights) -> None:
        """Take the weights that all replicas serve."""
        for each in self._mirrors:
            each.weights = weights

    def prepare(self, policies: Iterable[AccessPolicy]) -> None:
        self._prepare_all(list(policies))

    def note_routed(self, name: str | None) -> None:
        self._note(name)

    def resolve(
        self,
        name: str | None,
        adapters: Sequence[tuple[str, float]] = (),
        policy: AccessPolicy | None = None,
        by_token: ChoiceByToken | None = None,
    ) -> RequestWeights | None:
        found = super().resolve(name, adapters, policy, by_token)
        if policy is None or not policy.forbidden_experts:
            return found
        # The replica removes the experts, and refuses a request that can't run without them.
        return replace(found or RequestWeights(uuid4().hex), forbidden_experts=policy.forbidden_experts)


def served_by_all(served: Sequence[ServedWeights]) -> ServedWeights:
    """Return the weights that all replicas serve."""
    first, *others = served
    adapters = {
        name: adapter for name, adapter in first.adapters.items() if all(name in each.adapters for each in others)
    }
    return ServedWeights(
        max(each.changed_at for each in served),
        adapters,
        [candidate for candidate in first.candidates if candidate.name in adapters],
        {name: folder for name, folder in first.variants.items() if all(name in each.variants for each in others)},
    )
