"""Routers of a CUDA device that norm their rows (Gemma 4), as a norm, a product and a choice: three launches."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from server.kernels.native.structures.layers import NormKind, RouterKind
from server.kernels.triton.available import runs_on
from server.model.blocks.errors import UnsupportedLayerError
from server.model.fused_routers import CHOSEN, LOGITS, WEIGHTS, are_near, check_choices, fuse_all, parts_of
from server.model.native_layers.own_router import find_own_router
from server.model.native_layers.router_kinds import SPREADS

if TYPE_CHECKING:
    from server.kernels.triton.rms_norm import RmsNorm
    from server.kernels.triton.router_choice import RouterRule

log = logging.getLogger(__name__)

PARTS = [LOGITS, WEIGHTS, CHOSEN]  # of what such a router returns, whose first are the scores of all experts
LEAST_EXPERTS = 2
ROWS = 4  # of a trial, for each spread


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


def fuse_normed_routers(model: nn.Module, device: torch.device | None) -> int:
    """Let the routers of a model that norm their rows run as a norm, a product and a choice; return how many do.

    Args:
        model: whose norms are modules of transformers still.
        device: where Triton's kernels run; None for nowhere.
    """
    if device is None or not runs_on(device):
        return 0
    count = fuse_all(model, _product_of, _fuse, device)
    log.info("%d routers norm their rows, and choose in one launch", count)
    return count


def _product_of(module: nn.Module) -> nn.Linear | None:
    linears = [each for each in module.children() if isinstance(each, nn.Linear)]
    return linears[0] if len(linears) == 1 and linears[0].out_features >= LEAST_EXPERTS else None


@torch.inference_mode()
def _fuse(module: Any, linear: nn.Linear, dtype: torch.dtype) -> FusedNormedRouter:
    """Return a router's forward in three launches.

    Args:
        dtype: of the rows that it is called with.

    Raises:
        UnsupportedLayerError: it is no such router, or chooses in another way.
    """
    from server.kernels.triton.rms_norm import MOST_NUMBERS, RmsNorm  # noqa: PLC0415  Triton may not be installed
    from server.kernels.triton.router_choice import MOST_EXPERTS, RouterRule  # noqa: PLC0415  as above

    weight = linear.weight
    own = find_own_router(module, len(weight), top_k=0)
    if own.norm.kind is not NormKind.RMS or weight.shape[1] > MOST_NUMBERS or len(weight) > MOST_EXPERTS:
        raise UnsupportedLayerError("no kernel has its norm, or so many experts")
    rows = _trial_rows(weight, dtype)
    output = module(rows)
    if parts_of(output, len(rows), len(weight)) != PARTS or output[0].dtype != torch.float32:
        raise UnsupportedLayerError("it does not return scores, weights and choices")
    scores, weights, chosen = output
    if weights.dtype != torch.float32:
        raise UnsupportedLayerError("its weights are not in float32")
    named = dict(module.named_parameters(recurse=False))
    scales = next((name for name, value in named.items() if value.numel() == len(weight)), None)
    rule = RouterRule(
        int(RouterKind.SOFTMAX_FIRST), chosen.shape[1], 1, 1, is_by_best=False, is_normalised=True, scale=1.0
    )
    norm = RmsNorm(own.norm.weight.to(weight.device), own.norm.epsilon)
    fused = FusedNormedRouter(module, linear, norm, scales, rule)
    own_scores, own_weights, own_chosen = fused(rows)
    if not are_near(own_scores, scores, dtype):
        raise UnsupportedLayerError("its scores are other than those of a softmax")
    check_choices({WEIGHTS: own_weights, CHOSEN: own_chosen}, {WEIGHTS: weights, CHOSEN: chosen}, dtype)
    return fused


def _trial_rows(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return rows that point more and more to one expert, as the norm leaves no other difference between them."""
    matrix, generator = weight.double().cpu(), torch.Generator().manual_seed(0)
    wanted = torch.tensor(SPREADS, dtype=torch.float64).repeat_interleave(ROWS).unsqueeze(1)
    noise = torch.randn((len(wanted), matrix.shape[1]), generator=generator, dtype=torch.float64)
    experts = torch.randint(len(matrix), (len(wanted),), generator=generator)
    toward = torch.nn.functional.normalize(matrix[experts]) * matrix.shape[1] ** 0.5
    rows: torch.Tensor = noise + wanted * toward
    return rows.to(weight.device, dtype)
