"""Directory: what the names in requests mean beside the base model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from server.engine.interface import (
    RequestRefusedError,
    RequestWeights,
    RoutingCandidate,
    TokenRouting,
    UnknownAdapterError,
)
from server.weights.adapter_memory import AdapterMemory
from server.weights.adapter_registry import AdapterRegistry
from server.weights.adapter_selection import AdapterSelection
from server.weights.selection import CombinedSelection, VariantSelection
from server.weights.variant_registry import VariantRegistry, VariantVersion

MAX_ADAPTERS = 16  # of one request
MAX_ROUTED = 64  # that a router chooses from for one request
NO_ADAPTERS = "this server loads no adapters; start it with --adapters-dir"


class Directory:
    """A ``WeightsDirectory`` over the registered adapters and the loaded expert variants.

    Args:
        base: the name of the base model. Variants are served as ``BASE:VARIANT``.
        variants: None if none can be loaded.
        adapters: the adapters and the memory for them; None if none can be loaded.
    """

    def __init__(
        self,
        base: str,
        variants: VariantRegistry | None = None,
        adapters: tuple[AdapterRegistry, AdapterMemory] | None = None,
    ):
        self._prefix, self._variants = f"{base}:", variants
        self._adapters = None if adapters is None else adapters[0]
        self._memory = None if adapters is None else adapters[1]

    def names(self) -> list[str]:
        adapters = [] if self._adapters is None else self._adapters.names()
        variants = [] if self._variants is None else self._variants.names()
        return [*adapters, *(f"{self._prefix}{name}" for name in variants)]

    def root(self, name: str) -> str | None:
        version = self._find_variant(self._variant_of(name))
        if version is not None:
            return str(version.folder)
        adapter = None if self._adapters is None else self._adapters.find(name)
        return None if adapter is None else str(adapter.files.folder)

    def candidates(self) -> list[RoutingCandidate]:
        return [] if self._adapters is None else self._adapters.candidates()

    def note_routed(self, name: str | None) -> None:
        if self._adapters is not None:
            self._adapters.note_routed(name)

    def resolve(
        self,
        name: str | None,
        adapters: Sequence[tuple[str, float]] = (),
        routing: TokenRouting | None = None,
    ) -> RequestWeights | None:
        variant = None if name is None else self._variant_of(name)
        own = [] if name is None or variant is not None else [(name, 1.0)]
        selected = self._select_adapters([*own, *adapters], is_own=bool(own), routing=routing)
        if variant is None:
            return selected
        if self._variants is None or self._variants.find(variant) is None:
            raise RequestRefusedError(f"there is no expert variant {variant!r}; see GET /v1/models", "model")
        own_weights = VariantSelection(variant, self._variants)
        return own_weights if selected is None else CombinedSelection(own_weights, selected)

    def _variant_of(self, name: str) -> str | None:
        """Return the variant that a name stands for, if it has the form of one."""
        is_adapter = self._adapters is not None and self._adapters.find(name) is not None
        return name.removeprefix(self._prefix) if name.startswith(self._prefix) and not is_adapter else None

    def _find_variant(self, variant: str | None) -> VariantVersion | None:
        return None if variant is None or self._variants is None else self._variants.find(variant)

    def _select_adapters(
        self, chosen: Sequence[tuple[str, float]], *, is_own: bool, routing: TokenRouting | None
    ) -> AdapterSelection | None:
        """Return the adapters of a request; None if it has none.

        Args:
            is_own: whether the first one is the request's model.
        """
        if not chosen and routing is None:
            return None
        if self._adapters is None or self._memory is None:
            raise RequestRefusedError(NO_ADAPTERS, "adapters")
        if len(chosen) > MAX_ADAPTERS:
            raise RequestRefusedError(f"a request may use at most {MAX_ADAPTERS} adapters", "adapters")
        names = [each for each, _ in chosen]
        for index, each in enumerate(names):
            if self._adapters.find(each) is None:
                field = "model" if is_own and not index else "adapters"
                raise UnknownAdapterError(f"there is no adapter {each!r}; see GET /v1/models", field)
            if names.count(each) > 1:
                raise RequestRefusedError(f"the adapter {each!r} is chosen twice; name it once", "adapters")
        if routing is not None:
            routing = replace(routing, adapters=tuple(self._routed(self._adapters, routing, names)))
        return AdapterSelection(chosen, self._adapters.find, self._memory, routing, self._adapters.note_routed_tokens)

    @staticmethod
    def _routed(registry: AdapterRegistry, routing: TokenRouting, fixed: Collection[str]) -> list[str]:
        """Return the adapters that a router chooses from for each token."""
        field = "routing.adapters"
        if routing.adapters is None:
            names = [
                each for each in registry.names() if each not in fixed and not registry.reason_against_tokens(each)
            ]
            if not names:
                raise RequestRefusedError(
                    "no adapter can be chosen by token: load one that adds to linear layers only", "routing"
                )
            if len(names) > MAX_ROUTED:
                raise RequestRefusedError(
                    f"{len(names)} adapters can be chosen by token, more than {MAX_ROUTED}: name those to choose from",
                    field,
                )
            return sorted(names)
        for each in routing.adapters:
            if registry.find(each) is None:
                raise UnknownAdapterError(f"there is no adapter {each!r}; see GET /v1/models", field)
            if each in fixed or routing.adapters.count(each) > 1:
                raise RequestRefusedError(f"the adapter {each!r} is chosen twice; name it once", field)
            reason = registry.reason_against_tokens(each)
            if reason is not None:
                raise RequestRefusedError(f"the adapter {each!r} can't be chosen by token: {reason}", field)
        return sorted(routing.adapters)
