"""Predicts the experts of the next MoE layer, by applying its router one layer early."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from server.kernels.expert import ExpertsModule
from server.model.experts.router import RouterSample, RouterWeights, find_router
from server.model.experts.step_variants import StepVariants

IntArray = npt.NDArray[np.int64]

log = logging.getLogger(__name__)


class GateInput(NamedTuple):
    """The input of a layer's experts in a step."""

    hidden_states: torch.Tensor | None  # (tokens, hidden)
    variants: StepVariants | None = None
    predicted: IntArray | None = None  # what the next layer's router chooses, if it has been applied already


class NextLayerGate:
    """The router of the next MoE layer, applied to this layer's input; a variant's own router to the variant's tokens.

    Args:
        router: of the model.
        layer: the next layer.
        k: experts that a token chooses there.
    """

    def __init__(self, router: RouterWeights, layer: int, k: int):
        self._router, self._layer, self._k = router, layer, k

    def __call__(self, given: GateInput) -> IntArray:
        """Predict the numbers of experts, likeliest first, ``(tokens, k)``."""
        if given.predicted is not None:
            return given.predicted
        assert given.hidden_states is not None
        numbers: IntArray = self._router.choose(given.hidden_states, self._k).cpu().numpy()
        if given.variants is not None:
            self._apply_variants(numbers, given.hidden_states, given.variants)
        return numbers

    def _apply_variants(self, numbers: IntArray, hidden_states: torch.Tensor, variants: StepVariants) -> None:
        """Replace the predictions for tokens of variants that have a router of their own."""
        sets, places = variants.sets_of_rows(self._layer, len(numbers)), variants.places_by_layer[self._layer]
        for number, variant in enumerate(variants.variants, 1):
            own = variant.layers.get(self._layer)
            if own is None or not own.router:
                continue
            tokens = (sets == number).nonzero()[0]
            rows = self._router.with_tensors(own.router).choose(hidden_states[tokens], self._k).cpu().numpy()
            numbers[tokens] = places.numbers[places.place(rows, sets[tokens])]


def find_routers(
    model: nn.Module, layers: Mapping[ExpertsModule, int], samples: Mapping[ExpertsModule, RouterSample]
) -> dict[int, RouterWeights]:
    """Return the router of each MoE layer that tokens of text go to, where one can be found.

    Args:
        layers: the experts modules and their layers.
        samples: a sample of each module that tokens of text go to.
    """
    names: dict[Any, str] = {module: name for name, module in model.named_modules()}
    found = {layers[module]: find_router(model, names[module], sample) for module, sample in samples.items()}
    return {layer: router for layer, router in found.items() if router is not None}


def find_next_layer_gates(
    routers: Mapping[int, RouterWeights],
    layers: Mapping[ExpertsModule, int],
    samples: Mapping[ExpertsModule, RouterSample],
) -> dict[int, NextLayerGate]:
    """Return the gate of the next layer for each MoE layer but the last, where it has a router.

    Args:
        routers: by layer.
        layers: the experts modules and their layers, in the order in which they run.
        samples: a sample of each module that tokens of text go to.
    """
    gates: dict[int, NextLayerGate] = {}
    for (_, layer), (module, following) in pairwise((one, layer) for one, layer in layers.items() if one in samples):
        router = routers.get(following)
        if router is None:
            log.info("layer %d has no usable router; prefetching its experts by co-activation", following)
        else:
            gates[layer] = NextLayerGate(router, following, samples[module].top_k_index.shape[-1])
    return gates
