"""Finds the router of a layer of experts by the shapes of its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

Scoring = Callable[[torch.Tensor], torch.Tensor]
# Functions that routers apply to their logits before a correction is added; without one, the order of logits decides.
SCORINGS: tuple[Scoring, ...] = (
    torch.sigmoid,
    lambda logits: logits.softmax(-1),
    lambda logits: F.softplus(logits).sqrt(),
)

SHARED = "n_shared_experts"  # attribute of a router
LOGITS_FACTOR = "output_multiplier"  # attribute of a router
LEAST_AGREEMENT = 0.5  # share of the model's own choices that a router must find to be worth applying ahead


@dataclass(frozen=True)
class RouterWeights:
    """The linear part of a router."""

    weight: torch.Tensor  # (experts, hidden); rows of shared experts follow
    bias: torch.Tensor | None  # (experts,)
    correction: torch.Tensor | None  # (experts,), added to the scores to balance the experts' load
    scoring: Scoring
    names: Mapping[str, str] = field(default_factory=dict)  # of ``weight``, ``bias`` and ``correction`` in the model
    top_k: int = 0  # experts that a token chooses
    num_shared: int = 0  # rows whose scores only weight experts that every token runs through
    logits_scale: float = 1.0
    num_skips: int = 0  # last rows, which stand for no expert

    @torch.inference_mode()
    def choose(self, hidden_states: torch.Tensor, k: int) -> torch.Tensor:
        """Return the ``k`` best experts of each token, best first: ``(tokens, hidden)`` to ``(tokens, k)``.

        Routers that admit only the best groups of experts are applied without their groups.
        """
        scores = F.linear(hidden_states.to(self.weight.dtype), self.weight, self.bias)  # (tokens, experts)
        scores = scores[:, : scores.shape[1] - self.num_shared]
        if self.correction is not None:
            scores = self.scoring(scores.float() * self.logits_scale) + self.correction
        return scores.topk(k, dim=-1).indices

    def with_tensors(self, tensors: Mapping[str, torch.Tensor]) -> RouterWeights:
        """Return this router with some other tensors, by role (``weight``, ``bias``, ``correction``)."""
        return replace(
            self,
            weight=tensors.get("weight", self.weight),
            bias=tensors.get("bias", self.bias),
            correction=tensors.get("correction", self.correction),
        )


@dataclass(frozen=True)
class RouterSample:
    """The input and the choices of one layer's experts in some step."""

    hidden_states: torch.Tensor  # (tokens, hidden)
    top_k_index: torch.Tensor  # (tokens, k)


def changeable(routers: Mapping[int, RouterWeights]) -> dict[int, RouterWeights]:
    """Return the routers that variants may change, by layer: those whose rows are all of experts."""
    return {layer: router for layer, router in routers.items() if not router.num_shared}


def find_router(model: nn.Module, name: str, sample: RouterSample, num_identities: int = 0) -> RouterWeights | None:
    """Find the router of an experts module; return None if no weights have its shape and choose alike.

    The search begins in the module that owns the experts and goes on to that module's owner, as long as no other
    experts are in it. Routers with a correction score by sigmoid or softmax; the sample's choices show which. The
    sample also rules out routers that do not see what the experts see, since they can't be applied to it.

    Args:
        name: of the experts module in the model.
        num_identities: rows of the router after those of experts.
    """
    experts: Any = model.get_submodule(name)
    num_experts, hidden = int(experts.num_experts) + num_identities, sample.hidden_states.shape[-1]
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
        weights = [
            path
            for path, tensor in tensors.items()
            if tuple(tensor.shape) in {(num_experts + more, hidden) for more in (0, _num_shared(owner, path))}
        ]
        if weights:  # a shared expert's may have the same shape
            routers = [
                _router(path, tensors, num_experts, sample, owner_name, logits_scale=_logits_scale(owner, path))
                for path in weights
            ]
            agreements = [_agreement(router, sample) for router in routers]
            best = max(agreements)
            return routers[agreements.index(best)] if best >= LEAST_AGREEMENT else None
    return None


def _num_shared(owner: nn.Module, path: str) -> int:
    """Return how many experts the module of a tensor weights that every token runs through."""
    return int(getattr(owner.get_submodule(path.rpartition(".")[0]), SHARED, None) or 0)


def _logits_scale(owner: nn.Module, path: str) -> float:
    """Return the factor by which the module of a tensor multiplies logits."""
    return float(getattr(owner.get_submodule(path.rpartition(".")[0]), LOGITS_FACTOR, 1.0))


def _router(
    path: str,
    tensors: Mapping[str, torch.Tensor],
    num_experts: int,
    sample: RouterSample,
    owner: str,
    *,
    logits_scale: float,
) -> RouterWeights:
    """Return the router whose matrix is at ``path``, with the scoring that agrees best with the choices of a sample."""
    paths: dict[str, str] = {"weight": path}
    bias_path = f"{path.removesuffix('weight')}bias"
    if path.endswith("weight") and bias_path in tensors:
        paths["bias"] = bias_path
    for tensor_path, tensor in tensors.items():
        is_bias = "bias" in tensor_path.rpartition(".")[2] and tensor_path != paths.get("bias")
        if is_bias and tensor.numel() == num_experts:
            paths.setdefault("correction", tensor_path)
    found = {role: tensors[path] for role, path in paths.items()}
    correction = found["correction"].detach().flatten() if "correction" in found else None
    names = {role: f"{owner}.{path}" for role, path in paths.items()}
    top_k, num_shared = sample.top_k_index.shape[-1], len(found["weight"]) - num_experts
    routers = [
        RouterWeights(found["weight"], found.get("bias"), correction, scoring, names, top_k, num_shared, logits_scale)
        for scoring in SCORINGS
    ]
    return max(routers, key=lambda router: _agreement(router, sample))


def _agreement(router: RouterWeights, sample: RouterSample) -> float:
    """Return the share of the sample's choices that the router finds from the same input."""
    index = sample.top_k_index  # (tokens, k)
    found = router.choose(sample.hidden_states, index.shape[-1])
    return float((found.unsqueeze(-1) == index.unsqueeze(-2)).sum()) / index.numel()
