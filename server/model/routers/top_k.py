"""Sparse top-k routing, with noise while it is trained."""

from __future__ import annotations

import torch
from torch import nn

from server.model.routers.base import Router, TokenDispatch


class TopKRouter(Router):
    """Sends each token to the ``k`` experts with the largest logits.

    With logits ``l = x W`` the experts are ``T = top_k(l)`` and the weights are ``softmax(l)_i`` for ``i`` in ``T``,
    divided by their sum if ``normalises``. That is the softmax over the kept logits (Shazeer et al. 2017,
    arXiv 1701.06538, equations 3 and 5; Mixtral, arXiv 2401.04088, section 2.1).

    While it is trained, and only then, noise is added to the logits: ``l + z * softplus(x N)`` with ``z`` from a normal
    distribution and a learned matrix ``N`` (arXiv 1701.06538, equation 4).

    Args:
        k: experts of a token.
        normalises: divide the kept weights by their sum.
        has_noise: add the noise with a learned scale.
    """

    is_causal = is_independent = True
    may_drop = False

    def __init__(self, hidden_size: int, num_experts: int, k: int, *, normalises: bool = True, has_noise: bool = False):
        super().__init__(hidden_size, num_experts, num_experts)
        self.k, self.normalises = k, normalises
        self.noise = nn.Linear(hidden_size, num_experts, bias=False) if has_noise else None

    def max_experts(self, num_tokens: int) -> int:
        return min(self.num_experts, num_tokens * self.k)

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor) -> TokenDispatch:
        logits = self.logits(hidden_states)
        if self.noise is not None and self.training:
            scale = nn.functional.softplus(nn.functional.linear(hidden_states.float(), self.noise.weight.float()))
            logits = logits + torch.randn_like(logits) * scale
        scores = logits.softmax(-1)
        weights, experts = scores.topk(self.k, dim=-1)  # (tokens, k)
        if self.normalises:
            weights = weights / weights.sum(-1, keepdim=True)
        tokens = torch.arange(len(hidden_states), device=hidden_states.device).unsqueeze(-1).expand_as(experts)
        return TokenDispatch(
            experts[mask].flatten(),
            tokens[mask].flatten(),
            weights[mask].flatten(),
            scores,
            logits,
            torch.zeros_like(mask),
        )
