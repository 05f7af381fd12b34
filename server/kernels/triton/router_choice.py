"""RouterRule: the way in which a router chooses experts, which one launch applies to logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from server.kernels.triton import routers as kernels

MOST_EXPERTS = 1024  # whose scores one program holds in registers


@dataclass(frozen=True)
class RouterRule:
    """The way in which a router chooses.

    Args:
        kind: ``RouterKind`` of the native kernels, but the sparse mixer.
        num_groups, top_groups: groups of experts, and how many of these a token chooses from.
        is_by_best: groups count as much as their best expert, instead of their two best.
        is_normalised: weights add up to the scale.
        scale: of weights.
    """

    kind: int
    top_k: int
    num_groups: int
    top_groups: int
    is_by_best: bool
    is_normalised: bool
    scale: float


def choose(
    logits: torch.Tensor,
    correction: torch.Tensor | None,
    rule: RouterRule,
    dtype: torch.dtype,
    *,
    expert_scales: torch.Tensor | None = None,
    scores: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the experts of rows of logits ``(rows, experts)``, int64 ``(rows, k)``, and their weights.

    Args:
        correction: ``(experts,)``, added to scores for the choice alone.
        dtype: of weights.
        expert_scales: ``(experts,)``, factors of the weights.
        scores: float32 ``(rows, experts)``, which takes the scores.
    """
    num_rows, num_experts = logits.shape
    logits, size = logits.contiguous(), num_experts // rule.num_groups
    chosen = torch.empty((num_rows, rule.top_k), dtype=torch.int64, device=logits.device)
    weights = torch.empty((num_rows, rule.top_k), dtype=dtype, device=logits.device)
    if num_rows:
        kernels.route_row[num_rows,](
            logits, logits if correction is None else correction, logits if expert_scales is None else expert_scales,
            logits if scores is None else scores, chosen, weights, num_experts, size, rule.top_groups, rule.top_k,
            rule.scale, HAS_CORRECTION=correction is not None, HAS_SCALES=expert_scales is not None,
            KEEPS_SCORES=scores is not None, **options_of(rule, num_experts),
        )  # fmt: skip
    return chosen, weights


def options_of(rule: RouterRule, num_experts: int) -> dict[str, int]:
    """Return the constants of the kernel for so many experts, but for what only some have."""
    return {
        "KIND": rule.kind,
        "IS_NORMALISED": rule.is_normalised,
        "IS_BY_BEST": rule.is_by_best,
        "BLOCK_G": triton.next_power_of_2(rule.num_groups),
        "BLOCK_S": triton.next_power_of_2(num_experts // rule.num_groups),
        "BLOCK_K": triton.next_power_of_2(rule.top_k),
        "num_warps": 1,
    }
