"""ImageExperts: the layers of experts for images, which tokens of images go to instead of a layer's own experts."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from server.kernels.native.library import Kernels
from server.kernels.native.structures.layers import LayerSpec
from server.model.blocks.layer import NativeLayer
from server.model.blocks.workspace import Workspace
from server.model.experts.expert_layer import ExpertLayer

NO_EXPERT = -1  # in the choices of a step


class ChosenRows(NamedTuple):
    """The choices of a layer of experts in a step.

    Args:
        spec_index: of the layer.
        place: of the layer among those with experts.
        chosen: int64 ``(rows, k)``, each a row of the token's router.
        tokens: of the rows; None if these are all of the step.
    """

    spec_index: int
    place: int
    layer: ExpertLayer
    chosen: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64] | None = None


class ImageExperts:
    """Divides the tokens of steps between layers' own experts and those for images.

    Args:
        specs: of the layers, in their order, then of the image layers.
        image_layers: of each layer with experts; empty if there are none.
    """

    def __init__(
        self,
        kernels: Kernels,
        specs: ctypes.Array[LayerSpec],
        layers: Sequence[NativeLayer],
        image_layers: Sequence[NativeLayer],
    ):
        self._kernels, self._specs = kernels, specs
        self._layers = [*layers, *image_layers]
        self._num_layers = len(layers)
        self.routed = [layer.experts for layer in self._layers if layer.experts is not None]  # all layers of experts
        self._num_routed = len(self.routed) - len(image_layers)

    def divide(
        self, workspace: Workspace, index: int, place: int, are_images: npt.NDArray[np.bool_]
    ) -> list[ChosenRows]:
        """Return the choices of a layer that has begun, and those of its experts for images, which this begins.

        Each choice is left to one of both layers. The weights of all are those of the layer itself, which is to be
        finished once both have run.

        Args:
            place: of the layer among those with experts.
            are_images: ``(tokens,)``.
        """
        image_index, image_place = self._num_layers + place, self._num_routed + place
        self._kernels.begin_layer(self._specs[image_index], workspace.call, image_place)
        top_k = self._layers[index].mixture.router.top_k
        weights, of_images = (workspace.weights(each, top_k) for each in (place, image_place))
        weights[are_images] = of_images[are_images]
        found = []
        for each, own_place, mask in (index, place, ~are_images), (image_index, image_place, are_images):
            layer, chosen = self._layers[each].experts, workspace.chosen(own_place, top_k)
            assert layer is not None
            found.append(ChosenRows(each, own_place, layer, chosen[mask].astype(np.int64), np.flatnonzero(mask)))
            chosen[~mask] = NO_EXPERT
        return found
