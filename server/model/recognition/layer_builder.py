"""Builds the layers of a model as the native kernels run them, but for what trials find."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from server.model.architecture import text_body
from server.model.blocks.capture import LayerCapture
from server.model.blocks.declaration import MixerDeclaration
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.layer import NativeLayer
from server.model.blocks.mixer import LayerPlace, MixerParts
from server.model.experts.expert_layer import ExpertLayer
from server.model.native_layers.spec import LayerRouter, build_layer, rotary_of
from server.model.recognition.find_parts import FoundParts, find_parts


class LayerBuilder:
    """Builds the layers of one model.

    Args:
        model: with its weights.
        experts: the layers of its modules of experts.
        recurrent: modules that keep states.
    """

    def __init__(self, model: PreTrainedModel, experts: Mapping[Any, ExpertLayer], recurrent: Collection[nn.Module]):
        self.model, self.experts, self._recurrent = model, experts, recurrent
        self.names: Mapping[Any, str] = {module: name for name, module in model.named_modules()}
        body: Any = text_body(model)
        self.dtype: torch.dtype = body.dtype  # towers may have another
        self.rotary: Any = rotary_of(body)

    def parts_of(self, captured: LayerCapture) -> FoundParts:
        """Return the parts of a layer.

        Raises:
            UnsupportedLayerError: the layer has other parts.
        """
        return find_parts(captured.module, captured, self._recurrent)

    def experts_of(self, captured: LayerCapture) -> Any:
        """Return the module of a layer's experts; None if it has none."""
        return next((each for each in captured.module.modules() if each in self.experts), None)

    def build(self, index: int, parts: FoundParts, captured: LayerCapture, router: LayerRouter) -> NativeLayer:
        """Return a layer without its mixer, and without what trials find.

        Raises:
            UnsupportedLayerError: the layer does not have the usual structure.
        """
        module = self.experts_of(captured)
        experts = None if module is None else self.experts[module]
        layer = build_layer(
            captured.module, index, parts, experts, router=router.weights, own=router.own, router_mlp=router.mlp
        )
        if router.table is not None:
            own = layer.mixture.router
            own.table, own.table_rows = layer.kept.hold(router.table), len(router.table)
        return layer

    def build_mixer(
        self, layer: NativeLayer, captured: LayerCapture, kinds: Sequence[MixerParts]
    ) -> tuple[int, MixerDeclaration]:
        """Build a layer's mixer as the first of some kinds that it can be.

        Args:
            kinds: the parts of its module as each kind that it may be, at least one.

        Returns:
            The number of kinds before it, and what a call of the layer shows of it.

        Raises:
            UnsupportedLayerError: it is none of these.
        """
        place = LayerPlace(layer.spec.index, self.rotary, self.dtype)
        prefix = f"{self.names[captured.layer]}."
        for number, parts in enumerate(kinds):
            name = "" if parts.module is None else self.names[parts.module].removeprefix(prefix)
            try:
                declared = parts.declare(captured, name, place)
                layer.mixer = parts.build(declared, place)
            except UnsupportedLayerError:
                if number == len(kinds) - 1:
                    raise
            else:
                break
        if captured.options is not None and captured.options.chosen is not None and layer.mixer.chosen_keys is None:
            raise UnsupportedLayerError(f"its {layer.mixer.name} takes the keys that an indexer chose")
        return number, declared
