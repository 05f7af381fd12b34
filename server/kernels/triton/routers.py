"""Kernel of a router's choice: scores of logits, the best experts, and their weights, in one launch."""

from __future__ import annotations

import triton
import triton.language as tl

SOFTMAX_FIRST: tl.constexpr = tl.constexpr(0)  # as RouterKind
TOP_FIRST: tl.constexpr = tl.constexpr(1)
SIGMOID: tl.constexpr = tl.constexpr(2)
TOP_SIGMOID: tl.constexpr = tl.constexpr(3)


@triton.jit
def route_row(
    logits, correction, expert_scales, scores_kept, chosen, weights, num_experts, group_size, top_groups, top_k, scale,
    KIND: tl.constexpr, HAS_CORRECTION: tl.constexpr, HAS_SCALES: tl.constexpr, KEEPS_SCORES: tl.constexpr,
    IS_NORMALISED: tl.constexpr, IS_BY_BEST: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Choose experts for one row of logits, the best first; of equal ones, the first in order.

    Args:
        correction: added to scores for the choice alone.
        expert_scales: factors of the weights of each expert, after all else.
        scores_kept: takes the scores of all experts.
        group_size: experts of a group; all choices are from the ``top_groups`` best groups.
        IS_BY_BEST: groups count as much as their best expert; else as their two best together.
        BLOCK_G, BLOCK_S, BLOCK_K: powers of two that hold the groups, a group's experts, and the choices.
    """
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK_S)[None, :]
    expert = tl.arange(0, BLOCK_G)[:, None] * group_size + place
    is_there = (place < group_size) & (expert < num_experts)
    scores = tl.load(logits + row * num_experts + expert, mask=is_there, other=float("-inf")).to(tl.float32)
    if KIND == SOFTMAX_FIRST:
        powers = tl.exp(scores - tl.max(tl.max(scores, axis=1), axis=0))
        scores = powers / tl.sum(tl.sum(powers, axis=1), axis=0)
    elif KIND == SIGMOID:
        scores = tl.sigmoid(scores)
    if KEEPS_SCORES:
        tl.store(scores_kept + row * num_experts + expert, scores, mask=is_there)
    ranked = scores
    if HAS_CORRECTION:
        ranked = ranked + tl.load(correction + expert, mask=is_there, other=0.0).to(tl.float32)
    ranked = tl.where(is_there, ranked, float("-inf"))
    if BLOCK_G > 1:
        group = tl.arange(0, BLOCK_G)
        best = tl.max(ranked, axis=1)
        if not IS_BY_BEST:
            first = tl.min(tl.where(ranked == best[:, None], place, BLOCK_S), axis=1)
            best = best + tl.max(tl.where(place == first[:, None], float("-inf"), ranked), axis=1)
        is_kept = tl.zeros((BLOCK_G,), tl.int32)
        for _ in range(top_groups):
            at = tl.min(tl.where(best == tl.max(best, axis=0), group, BLOCK_G), axis=0)
            is_kept = tl.where(group == at, 1, is_kept)
            best = tl.where(group == at, float("-inf"), best)
        ranked = tl.where(is_kept[:, None] == 1, ranked, float("-inf"))
    number = tl.arange(0, BLOCK_K)
    found = tl.zeros((BLOCK_K,), tl.int32)
    values = tl.zeros((BLOCK_K,), tl.float32)
    for n in range(top_k):
        most = tl.max(tl.max(ranked, axis=1), axis=0)
        at = tl.min(tl.min(tl.where(ranked == most, expert, num_experts - 1), axis=1), axis=0)  # the last one for NaN
        is_best = (expert == at) & is_there
        value = tl.sum(tl.sum(tl.where(is_best, scores, 0.0), axis=1), axis=0)
        found = tl.where(number == n, at, found)
        values = tl.where(number == n, value, values)
        ranked = tl.where(is_best, float("-inf"), ranked)
    is_choice = number < top_k
    if KIND == TOP_SIGMOID:
        values = tl.sigmoid(values)
    if KIND == TOP_FIRST:
        values = tl.where(is_choice, values, float("-inf"))
        values = tl.exp(values - tl.max(values, axis=0))
        values = values / tl.sum(values, axis=0)
    if IS_NORMALISED:
        values = values / tl.sum(tl.where(is_choice, values, 0.0), axis=0)
    if HAS_SCALES:
        values = values * tl.load(expert_scales + found, mask=is_choice, other=0.0).to(tl.float32)
    tl.store(chosen + row * top_k + number, found.to(chosen.dtype.element_ty), mask=is_choice)
    tl.store(weights + row * top_k + number, (values * scale).to(weights.dtype.element_ty), mask=is_choice)
