"""Sets of experts for the native kernels, where sequences of a step use variants."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import addressof
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch

from server.kernels.native.library import impossible
from server.kernels.native.slot_format import PLAIN
from server.kernels.native.structures.layers import ExpertSets, Router
from server.kernels.native.structures.matrices import Matrix
from server.model.blocks.layer import NativeLayer
from server.model.expert_variant import ExpertVariant, VariantLayer
from server.model.experts.step_variants import PlacesByLayer, StepVariants


class VariantRouters:
    """The routers of variants as the kernels take them, kept as long as their variant."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[ExpertVariant, dict[int, NativeRouter]] = WeakKeyDictionary()

    def router(self, variant: ExpertVariant, layer: NativeLayer) -> Router:
        """Return the router of a layer; one without outputs stands for the layer's own."""
        assert layer.experts is not None
        number = layer.experts.number
        own = variant.layers.get(number)
        if own is None or not own.router:
            return Router()
        routers = self._known.setdefault(variant, {})
        if number not in routers:
            routers[number] = NativeRouter(layer, own)
        return routers[number].router


class NativeRouter:
    """A router, and the tensors whose memory it refers to."""

    def __init__(self, layer: NativeLayer, own: VariantLayer):
        self.router = Router.from_buffer_copy(layer.mixture.router)
        self._keeps: list[torch.Tensor] = []
        weight = own.router.get("weight")
        if weight is not None:
            weight = self._keep(weight if weight.dtype in PLAIN else weight.float())
            outputs, inputs = weight.shape
            self.router.matrix = Matrix(
                format=PLAIN[weight.dtype], outputs=outputs, inputs=inputs, data=weight.data_ptr()
            )
        for role in ("bias", "correction"):
            if role in own.router:
                setattr(self.router, role, self._keep(own.router[role].float().flatten()).data_ptr())
        reason = impossible("greenroom_check_router", self.router, layer.mixture.router.matrix.inputs)
        if reason is not None:
            raise ValueError(f"a variant's layer {layer.spec.index} has {reason}")

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        self._keeps.append(tensor.detach().contiguous())
        return self._keeps[-1]


class StepSets:
    """The sets of experts of the steps that use the same variants, and the arrays that the kernels read.

    Args:
        layers: those with experts, in the order in which they run.
    """

    def __init__(self, layers: Sequence[NativeLayer], variants: StepVariants, routers: VariantRouters):
        num_sets = len(variants.variants) + 1
        self._routers = (Router * (len(layers) * num_sets))(
            *(
                Router() if variant is None else routers.router(variant, layer)
                for layer in layers
                for variant in (None, *variants.variants)
            )
        )
        experts = [layer.experts for layer in layers if layer.experts is not None]
        places = [variants.places(layer) for layer in experts]
        width = max(each.table.shape[1] for each in places)
        self._places = np.zeros((len(layers), num_sets, width), dtype=np.int32)
        self._numbers = np.zeros((len(layers), max(len(each.keys) for each in places)), dtype=np.int32)
        for layer, each, table, numbers in zip(experts, places, self._places, self._numbers, strict=True):
            table[:, : each.table.shape[1]] = each.table
            numbers[: len(each.keys)] = np.minimum(each.numbers[:-1], len(layer.keys))  # adapters know no added experts
        self.call = ExpertSets(
            routers=addressof(self._routers),
            places=self._places.ctypes.data,
            numbers=self._numbers.ctypes.data,
            num_sets=num_sets,
            width=width,
        )

    def of_step(self, sets: npt.NDArray[np.int64]) -> tuple[int, object]:
        """Return the address for a step, and what has to be kept until it has run.

        Args:
            sets: of each sequence.
        """
        set_of_sequence, call = sets.astype(np.int32), ExpertSets.from_buffer_copy(self.call)
        call.set_of_sequence = set_of_sequence.ctypes.data
        return addressof(call), (self, call, set_of_sequence)


class VariantSets:
    """Makes ``StepSets``, and keeps those of the last combinations of variants.

    Args:
        layers: those with experts, in the order in which they run.
    """

    def __init__(self, layers: Sequence[NativeLayer]):
        self._layers, self._routers = layers, VariantRouters()
        self._known: WeakKeyDictionary[PlacesByLayer, StepSets] = WeakKeyDictionary()

    def of(self, variants: StepVariants) -> StepSets:
        """Return the sets of a step's variants."""
        found = self._known.get(variants.places_by_layer)
        if found is None:
            found = self._known[variants.places_by_layer] = StepSets(self._layers, variants, self._routers)
        return found
