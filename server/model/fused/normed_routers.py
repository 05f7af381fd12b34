"""Routers of a CUDA device that norm their rows (Gemma 4), as a norm, a product and a choice: three launches."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from server.kernels.native.structures.layers import NormKind
from server.kernels.triton.available import runs_on
from server.model.blocks.errors import UnsupportedLayerError
from server.model.declarations.declaration import Router
from server.model.fused.routers import (
    CHOSEN,
    LOGITS,
    WEIGHTS,
    check_choices,
    fuse_all,
    parts_of,
    rule_of,
    sample_rows,
)
from server.model.fused.samples import sample_of
from server.model.native_layers.own_router import find_own_router

if TYPE_CHECKING:
    from server.kernels.triton.rms_norm import RmsNorm
    from server.kernels.triton.router_choice import RouterRule

log = logging.getLogger(__name__)

PARTS = [LOGITS, WEIGHTS, CHOSEN]  # of what such a router returns, whose first are the scores of all experts


class FusedNormedRouter:
    """The forward of a router that norms its rows, and returns scores, weights and choices.

    Args:
        linear: the product.
        norm: of rows, with all factors before the product.
        scales: the name of the factors of the experts' weights.
    """

    def __init__(self, module: Any, linear: nn.Linear, norm: RmsNorm, scales: str | None, rule: RouterRule):
        self._module, self._linear, self._norm, self._scales, self._rule = module, linear, norm, scales, rule

    def __call__(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        from server.kernels.triton.router_choice import choose  # noqa: PLC0415  Triton may not be installed

        logits = self._linear(self._norm(hidden_states))
        scores = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
        scales = None if self._scales is None else getattr(self._module, self._scales)
        chosen, weights = choose(logits, None, self._rule, torch.float32, expert_scales=scales, scores=scores)
        return scores, weights, chosen


def fuse_normed_routers(routers: Mapping[nn.Module, Router], dtype: torch.dtype, device: torch.device | None) -> int:
    """Let the routers of a model that norm their rows run as a norm, a product and a choice; return how many do.

    Args:
        routers: what was declared of them, by module; their norms are modules of transformers still.
        dtype: of the model.
        device: where Triton's kernels run; None for nowhere.
    """
    if device is None or not runs_on(device):
        return 0
    count = fuse_all({module: each for module, each in routers.items() if each.weight is None}, _fuse, dtype, device)
    log.info("%d routers norm their rows, and choose in one launch", count)
    return count


@torch.inference_mode()
def _fuse(module: Any, declared: Router, dtype: torch.dtype) -> FusedNormedRouter:
    """Return a router's forward in three launches.

    Args:
        dtype: of the rows that it is called with.

    Raises:
        UnsupportedLayerError: it is no such router, or chooses in another way.
    """
    fused, linear = _with_kernels(module, declared)
    output = module(torch.zeros((1, linear.in_features), device=linear.weight.device, dtype=dtype))
    if parts_of(output, 1, linear.out_features) != PARTS or any(each.dtype != torch.float32 for each in output[:2]):
        raise UnsupportedLayerError("it does not return scores, weights and choices in float32")
    sample = sample_of(module)
    of_sample, linear = _with_kernels(sample, declared)
    rows = sample_rows(linear.weight)
    check_choices(of_sample(rows), sample(rows), PARTS)
    return fused


def _with_kernels(module: Any, declared: Router) -> tuple[FusedNormedRouter, nn.Linear]:
    """Return a router's forward and its product.

    Raises:
        UnsupportedLayerError: the kernels do not have it.
    """
    from server.kernels.triton.rms_norm import MOST_NUMBERS, RmsNorm  # noqa: PLC0415  Triton may not be installed

    linear = next(each for each in module.children() if isinstance(each, nn.Linear))
    own = find_own_router(module, linear.out_features, declared.top_k)
    if own.norm.kind is not NormKind.RMS or linear.in_features > MOST_NUMBERS:
        raise UnsupportedLayerError("no kernel has its norm")
    named = dict(module.named_parameters(recurse=False))
    scales = next((name for name, value in named.items() if value.numel() == linear.out_features), None)
    norm = RmsNorm(own.norm.weight.to(linear.weight.device), own.norm.epsilon)
    return FusedNormedRouter(module, linear, norm, scales, rule_of(declared, linear.out_features)), linear
