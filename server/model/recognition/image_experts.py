"""Finds the experts that tokens of images go to, and what a layer does with them, by trials of its modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import torch

from server.kernels.expert import ExpertsModule
from server.model.blocks.capture import LayerCapture, Routing
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.layer import NativeLayer
from server.model.blocks.no_mixer.mixer import NoMixer
from server.model.experts.expert_layer import ExpertLayer
from server.model.experts.router import RouterWeights
from server.model.hooks import use_hooks
from server.model.multimodal.image_embeddings import EXPERTS_OF
from server.model.native_layers.spec import build_layer
from server.model.recognition.find_parts import FoundParts, ImageParts
from server.model.transformers_hooks.probe import Probe

NEAR = 0.1  # difference from results that differ by 1


class _Marks(Probe):
    """Lets a layer's own experts return zeros, and those for images ones; keeps their arguments.

    Args:
        images: the experts for images.
    """

    def __init__(self, images: Any):
        super().__init__()
        self._images = images
        self.calls: dict[bool, Routing] = {}  # by whether they are those for images

    def run_experts(
        self, module: ExpertsModule, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        is_for_images = module is self._images
        self.calls[is_for_images] = Routing(hidden_states, top_k_index, top_k_weights)
        return torch.full_like(hidden_states, float(is_for_images))


class ImageExperts:
    """The experts of one layer for images.

    Args:
        layer: of the model, with the parts that both kinds of tokens go through.
        parts: of the layer.
        captured: a call of it; the hidden states that it returns are the rows of the trials.
        routing: what the experts got of these rows.
    """

    def __init__(
        self, layer: NativeLayer, parts: FoundParts, images: ImageParts, captured: LayerCapture, routing: Routing
    ):
        self._own, self._images, self.routing = layer, images, routing
        self.captured = replace(captured, given=captured.output, routing=routing)
        self.parts = replace(
            parts,
            input_norm=None,
            mixer_norm=None,
            output_norm=None,
            block=images.block,
            experts=images.experts,
            experts_norm=None,
            router=images.router,
            dense=None,
            scale=None,
            images=None,
        )

    @classmethod
    def of_trial(cls, layer: NativeLayer, parts: FoundParts, images: ImageParts, captured: LayerCapture) -> Self:
        """Return the experts of a layer after a trial of its modules.

        Raises:
            UnsupportedLayerError: tokens of images go elsewhere, or to other rows.
        """
        if parts.inner_norm is None or parts.is_router_apart:
            raise UnsupportedLayerError("its experts for images take other rows than normed hidden states")
        dtype = next(parts.inner_norm.module.parameters()).dtype
        with torch.inference_mode():
            rows = parts.inner_norm.module(captured.output.to(dtype))
        routing = _check_split(parts.block, images, rows)
        if captured.routing is None or routing.top_k_index.shape[1] != captured.routing.top_k_index.shape[1]:
            raise UnsupportedLayerError("its tokens of images go to another number of experts")
        return cls(layer, parts, images, captured, routing)

    def build(self, index: int, layers: Mapping[Any, ExpertLayer], router: RouterWeights | None) -> NativeLayer:
        """Build a layer of the experts alone, whose results the model's layer adds, but for the kind of its router.

        Args:
            index: of the layer among an adapter's layers.
            layers: by module of experts.
            router: of the experts.
        """
        found = build_layer(self._images.block, index, self.parts, layers[self._images.experts], router=router)
        found.mixer = NoMixer(index)
        return found

    def check(self, found: NativeLayer) -> None:
        """Raise ``UnsupportedLayerError`` if the model's layer does not add the results of a built layer as its own."""
        if self._own.mixture.scales_input != found.mixture.scales_input:
            raise UnsupportedLayerError("its experts for images are weighted in another way than its own")


def _check_split(block: Any, images: ImageParts, rows: torch.Tensor) -> Routing:
    """Call a block that holds experts of both kinds; return the routing of all rows by that for images.

    Raises:
        UnsupportedLayerError: rows of images do not go to these experts alone, and all others to the layer's own.
    """
    marks, every = _Marks(images.experts), torch.ones((1, len(rows)), dtype=torch.int32)
    some = every.clone()
    some[0, ::2] = 0
    is_image = some[0].bool()
    try:
        with torch.inference_mode(), use_hooks(marks):
            own, mixed = (_first(block(rows.unsqueeze(0), **{EXPERTS_OF: mask})) for mask in (0 * every, some))
            is_divided = all(
                torch.equal(marks.calls[kind].hidden_states, rows[is_image == kind]) for kind in (False, True)
            )
            images.block(rows)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UnsupportedLayerError(f"its experts for images are called in another way ({error})") from error
    added = (mixed - own).float().reshape(rows.shape)
    rounding = torch.finfo(rows.dtype).eps * own.float().abs().reshape(rows.shape)
    if not is_divided or not bool(((added - is_image.unsqueeze(1).float()).abs() < NEAR + rounding).all()):
        raise UnsupportedLayerError("its tokens of images go to other experts than those for images")
    return marks.calls[True]


def _first(output: Any) -> torch.Tensor:
    found: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return found
