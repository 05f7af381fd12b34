"""ExpertRestriction: a model, or a variant of it, without some of its experts."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from hashlib import sha256
from weakref import WeakKeyDictionary

from torch import nn

from expert_store import CheckpointError, ExpertCatalog, ExpertKey
from server.model.checkpoint.variant_routers import check_rows
from server.model.expert_variant import ExpertVariant, VariantLayer
from server.model.experts.router import RouterWeights

DIGEST_BYTES = 8


class ExpertRestriction:
    """Removes experts from the base model and from variants. Thread-safe.

    A restricted model is an ``ExpertVariant`` without files, whose routers lack some rows. There is one object for each
    variant, so that sequences with the same experts form one set in a step.

    Args:
        model: the modules that the routers' names belong to.
        catalog: the base model's own experts.
        routers: by layer.
        removed: numbers of experts, by layer. An expert of a variant has the number of the one that it replaces.

    Raises:
        CheckpointError: the model can't run without these experts.
    """

    def __init__(
        self,
        model: nn.Module,
        catalog: ExpertCatalog,
        routers: Mapping[int, RouterWeights],
        removed: Mapping[int, frozenset[int]],
    ):
        self._model, self._catalog, self._routers, self._removed = model, catalog, routers, dict(removed)
        text = repr([(layer, sorted(experts)) for layer, experts in sorted(removed.items())])
        self.id = sha256(text.encode()).hexdigest()[: 2 * DIGEST_BYTES]  # equal for equal experts
        self._lock = threading.Lock()  # guards the field below
        self._restricted: WeakKeyDictionary[ExpertVariant, ExpertVariant] = WeakKeyDictionary()
        self._base = self._restrict(ExpertVariant("", "", {}))

    def apply(self, variant: ExpertVariant | None) -> ExpertVariant:
        """Return a variant, or the base model, without the removed experts; the same object for the same variant.

        Raises:
            CheckpointError: the variant can't run without them.
        """
        if variant is None:
            return self._base
        with self._lock:
            found = self._restricted.get(variant)
            if found is None:
                found = self._restricted[variant] = self._restrict(variant)
        return found

    def _restrict(self, variant: ExpertVariant) -> ExpertVariant:
        layers = {**variant.layers}
        for layer, experts in self._removed.items():
            layers[layer] = self._without(layer, variant.layers.get(layer) or self._own(layer), experts)
        return ExpertVariant(variant.name, f"{variant.version}-{self.id}", layers)

    def _own(self, layer: int) -> VariantLayer:
        num_experts = len(self._catalog.layers[layer].experts)
        return VariantLayer(tuple(ExpertKey(layer, expert) for expert in range(num_experts)))

    def _without(self, layer: int, own: VariantLayer, experts: frozenset[int]) -> VariantLayer:
        """Return a layer without some experts, which it may lack already."""
        rows = [row for row, key in enumerate(own.keys) if key.expert not in experts]
        if len(rows) == len(own.keys):
            return own
        router = self._routers.get(layer)
        if router is None:
            raise CheckpointError(f"the router of layer {layer} was not found, so none of its experts can be removed")
        check_rows(self._model, router, layer, len(rows))
        base = {"weight": router.weight, "bias": router.bias, "correction": router.correction}
        tensors = {role: tensor for role, tensor in base.items() if tensor is not None} | dict(own.router)
        return VariantLayer(
            tuple(own.keys[row] for row in rows), {role: tensor.detach()[rows] for role, tensor in tensors.items()}
        )
