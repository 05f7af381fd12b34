"""Expert choice: each expert takes its best tokens."""

from __future__ import annotations

import torch

from server.model.routers.base import Router, TokenDispatch


class ExpertChoiceRouter(Router):
    """Lets each expert take the tokens with the largest scores for it.

    With ``S = softmax(X W)`` over the experts, ``(tokens, experts)``, each expert takes the ``k`` tokens with the
    largest entries of its column, ``k = tokens * capacity_factor / experts`` (rounded, at least 1), and its outputs
    have those entries as weights. A token may go to several experts or to none (Zhou et al. 2022, arXiv 2202.09368,
    section 3.2).

    The choice looks at all tokens of the group, later ones too, so a decoder can't use it.

    Args:
        capacity_factor: experts that a token goes to on average.
    """

    is_causal = is_independent = False
    may_drop = True

    def __init__(self, hidden_size: int, num_experts: int, *, capacity_factor: float = 2.0):
        super().__init__(hidden_size, num_experts, num_experts)
        self.capacity_factor = capacity_factor

    def max_experts(self, num_tokens: int) -> int:
        return self.num_experts if num_tokens else 0

    def capacity(self, num_tokens: int) -> int:
        """Return how many tokens of a group an expert takes."""
        return min(num_tokens, max(1, round(num_tokens * self.capacity_factor / self.num_experts)))

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor) -> TokenDispatch:
        logits = self.logits(hidden_states)
        scores = logits.softmax(-1)
        num_tokens = int(mask.sum())
        eligible = scores.masked_fill(~mask.unsqueeze(-1), -1.0)
        weights, tokens = eligible.T.topk(self.capacity(num_tokens), dim=-1)  # (experts, k)
        experts = torch.arange(self.num_experts, device=tokens.device).unsqueeze(-1).expand_as(tokens)
        dropped = mask.clone()
        dropped[tokens.flatten()] = False
        return TokenDispatch(experts.flatten(), tokens.flatten(), weights.flatten(), scores, logits, dropped)
