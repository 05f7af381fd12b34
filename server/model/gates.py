"""Which experts the next layer will choose, by its own router applied one layer early."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from server.kernels.expert import ExpertsModule

log = logging.getLogger(__name__)

Scoring = Callable[[torch.Tensor], torch.Tensor]
# What routers turn their logits into before a correction is added; without one, the order of the logits decides.
SCORINGS: tuple[Scoring, ...] = (torch.sigmoid, lambda logits: logits.softmax(-1))

LEAST_AGREEMENT = 0.5  # with the model's own choices, of a router that is worth applying ahead


@dataclass(frozen=True)
class RouterWeights:
    """The linear part of a router, found in a model by its shape."""

    weight: torch.Tensor  # (experts, hidden)
    bias: torch.Tensor | None  # (experts,)
    correction: torch.Tensor | None  # (experts,), added to the scores to balance the experts' load
    scoring: Scoring

    @torch.inference_mode()
    def choose(self, hidden_states: torch.Tensor, k: int) -> torch.Tensor:
        """``(tokens, hidden)`` to the ``k`` best experts of each token ``(tokens, k)``, best first.

        Groups of experts, of which some routers admit only the best, are not looked at.
        """
        scores = F.linear(hidden_states.to(self.weight.dtype), self.weight, self.bias)  # (tokens, experts)
        if self.correction is not None:
            scores = self.scoring(scores.float()) + self.correction
        return scores.topk(k, dim=-1).indices


@dataclass(frozen=True)
class Routed:
    """What one layer's experts were given in some step."""

    hidden_states: torch.Tensor  # (tokens, hidden)
    top_k_index: torch.Tensor  # (tokens, k)


class NextGate:
    """The router of the next MoE layer, applied to this layer's input."""

    def __init__(self, router: RouterWeights, k: int):
        self._router, self._k = router, k

    def __call__(self, hidden_states: torch.Tensor) -> npt.NDArray[np.int64]:
        """``(tokens, hidden)`` to experts ``(tokens, k)``, likeliest first."""
        chosen: npt.NDArray[np.int64] = self._router.choose(hidden_states, self._k).cpu().numpy()
        return chosen


def find_next_gates(
    model: nn.Module, layers: Mapping[ExpertsModule, int], samples: Mapping[ExpertsModule, Routed]
) -> dict[int, NextGate]:
    """For each MoE layer but the last, the gate of the layer that follows it, where a router can be found.

    Args:
        layers: the experts modules and their layers, in the order in which they run.
        samples: what each of them was given in a step, but for those that no token of text goes to.
    """
    names: dict[Any, str] = {module: name for name, module in model.named_modules()}
    gates: dict[int, NextGate] = {}
    for (_, layer), (module, following) in pairwise((one, layer) for one, layer in layers.items() if one in samples):
        router = find_router(model, names[module], samples[module])
        if router is None:
            log.info("layer %d has no router that can be applied ahead; its experts are predicted by habit", following)
        else:
            gates[layer] = NextGate(router, samples[module].top_k_index.shape[-1])
    return gates


def find_router(model: nn.Module, name: str, sample: Routed) -> RouterWeights | None:
    """The router of an experts module, by the shapes of its weights; None where nothing has them and chooses alike.

    It is looked for in the module that owns the experts, then in that one's owner, as long as no other experts are
    in it. Routers with a correction score by sigmoid or softmax; the sample's choices tell by which. Some routers
    do not see what the experts see, and can't be applied to it: these are found out by the sample too.

    Args:
        name: of the experts module in the model.
    """
    experts: Any = model.get_submodule(name)
    num_experts, hidden = int(experts.num_experts), sample.hidden_states.shape[-1]
    inside = {id(tensor) for tensor in experts.parameters()}
    owner_name = name
    while owner_name:
        owner_name = owner_name.rpartition(".")[0]
        owner = model.get_submodule(owner_name)
        if sum(hasattr(module, "_is_expert_parallel") for module in owner.modules()) > 1:
            return None
        tensors = {
            path: tensor
            for path, tensor in [*owner.named_parameters(), *owner.named_buffers()]
            if id(tensor) not in inside
        }
        weights = [path for path, tensor in tensors.items() if tuple(tensor.shape) == (num_experts, hidden)]
        if len(weights) == 1:
            return _router(weights[0], tensors, num_experts, sample)
    return None


def _router(path: str, tensors: Mapping[str, torch.Tensor], num_experts: int, sample: Routed) -> RouterWeights | None:
    """The router whose matrix is at ``path``, with what lies beside it; None if the model chooses otherwise."""
    bias = tensors.get(f"{path.removesuffix('weight')}bias") if path.endswith("weight") else None
    correction = next(
        (
            tensor.detach().flatten()
            for tensor_path, tensor in tensors.items()
            if "bias" in tensor_path.rpartition(".")[2] and tensor.numel() == num_experts and tensor is not bias
        ),
        None,
    )
    routers = [RouterWeights(tensors[path], bias, correction, scoring) for scoring in SCORINGS]
    best = max(routers, key=lambda router: _agreement(router, sample))
    return best if _agreement(best, sample) >= LEAST_AGREEMENT else None


def _agreement(router: RouterWeights, sample: Routed) -> float:
    """The part of what was chosen that the router finds from the same layer's input."""
    index = sample.top_k_index  # (tokens, k)
    found = router.choose(sample.hidden_states, index.shape[-1])
    return float((found.unsqueeze(-1) == index.unsqueeze(-2)).sum()) / index.numel()
