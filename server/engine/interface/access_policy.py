"""Access policies: what the requests of a key may use, and what is added to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class ForbiddenExperts:
    """Experts that no token may be routed to.

    Args:
        everywhere: numbers of experts in all layers that have them.
        by_layer: numbers of experts by layer, in the order of the layers.
    """

    everywhere: frozenset[int] = frozenset()
    by_layer: tuple[tuple[int, frozenset[int]], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.everywhere or self.by_layer)

    def in_layers(self, num_experts: Mapping[int, int]) -> dict[int, frozenset[int]]:
        """Return the forbidden experts of each layer that has any.

        Args:
            num_experts: of each layer.

        Raises:
            ValueError: there is no such layer or expert; the message names it.
        """
        found = {layer: {*filter(count.__gt__, self.everywhere)} for layer, count in num_experts.items()}
        for expert in sorted(self.everywhere - frozenset().union(*found.values())):
            raise ValueError(f"no layer has an expert {expert}; experts are numbered from 0")
        for layer, experts in self.by_layer:
            if layer not in num_experts:
                known = ", ".join(map(str, num_experts))
                raise ValueError(f"layer {layer} has no experts; the layers with experts are {known}")
            for expert in sorted(experts):
                if expert >= num_experts[layer]:
                    raise ValueError(f"layer {layer} has no expert {expert}, but experts 0 to {num_experts[layer] - 1}")
            found[layer] |= experts
        return {layer: frozenset(experts) for layer, experts in found.items() if experts}


@dataclass(frozen=True)
class AccessPolicy:
    """The rules for the requests of some keys.

    Args:
        models: shell-style patterns of the models, variants and adapters that requests may name; None for all.
        adapters: names and factors of adapters that are added to every request.
        forbidden_experts: experts that tokens are never routed to.
    """

    name: str
    models: tuple[str, ...] | None = None
    adapters: tuple[tuple[str, float], ...] = ()
    forbidden_experts: ForbiddenExperts = field(default_factory=ForbiddenExperts)

    @property
    def changes_weights(self) -> bool:
        """True if requests run with other weights than they would without the policy."""
        return bool(self.adapters or self.forbidden_experts)

    def allows(self, name: str) -> bool:
        """Return True if requests may name a model, a variant or an adapter; an alias counts as its model."""
        return self.models is None or any(name == pattern or fnmatchcase(name, pattern) for pattern in self.models)
