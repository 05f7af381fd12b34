"""Predicts the experts of the next MoE layer, by applying its router one layer early."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from server.kernels.expert import ExpertsModule
from server.model.experts.router import RouterSample, RouterWeights, find_router

log = logging.getLogger(__name__)


class NextLayerGate:
    """The router of the next MoE layer, applied to this layer's input."""

    def __init__(self, router: RouterWeights, k: int):
        self._router, self._k = router, k

    def __call__(self, hidden_states: torch.Tensor) -> npt.NDArray[np.int64]:
        """Predict experts, likeliest first: ``(tokens, hidden)`` to ``(tokens, k)``."""
        chosen: npt.NDArray[np.int64] = self._router.choose(hidden_states, self._k).cpu().numpy()
        return chosen


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
            gates[layer] = NextLayerGate(router, samples[module].top_k_index.shape[-1])
    return gates
