"""Switch routing: one expert a token, with an optional capacity."""

from __future__ import annotations

import math

import torch

from server.model.routers.base import Router, TokenDispatch


class SwitchRouter(Router):
    """Sends each token to its best expert, unless that expert is full.

    With ``p = softmax(x W)`` the expert is ``i = argmax(p)`` and the weight is ``p_i``. An expert takes at most
    ``ceil(tokens / experts * capacity_factor)`` tokens of a group, the first ones; the others are dropped, so that only
    the residual connection carries them on (Fedus et al. 2021, arXiv 2101.03961, sections 2.1 and 2.2). Padding is not
    counted and takes no room.

    Without a capacity a token's result depends on no other token. With one, it depends on the tokens before it in its
    group, and on the number of later ones: on its company, if the group is a batch.

    Args:
        capacity_factor: None for no capacity.
    """

    def __init__(self, hidden_size: int, num_experts: int, *, capacity_factor: float | None = None):
        super().__init__(hidden_size, num_experts, num_experts)
        self.capacity_factor = capacity_factor

    @property
    def is_independent(self) -> bool:
        return self.capacity_factor is None

    @property
    def is_causal(self) -> bool:
        return self.capacity_factor is None

    @property
    def may_drop(self) -> bool:
        return self.capacity_factor is not None

    def max_experts(self, num_tokens: int) -> int:
        return min(self.num_experts, num_tokens)

    def capacity(self, num_tokens: int) -> int | None:
        """Return how many tokens of a group an expert takes; None for all."""
        if self.capacity_factor is None:
            return None
        return math.ceil(num_tokens / self.num_experts * self.capacity_factor)

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor) -> TokenDispatch:
        logits = self.logits(hidden_states)
        scores = logits.softmax(-1)
        weights, experts = scores.max(-1)  # (tokens,)
        is_taken = mask
        capacity = self.capacity(int(mask.sum()))
        if capacity is not None:
            chosen = torch.nn.functional.one_hot(experts, self.num_experts) * mask.unsqueeze(-1)
            place = (chosen.cumsum(0) * chosen).sum(-1)  # of each token among those of its expert, from 1
            is_taken = mask & (place <= capacity)
        tokens = is_taken.nonzero().squeeze(-1)
        return TokenDispatch(experts[tokens], tokens, weights[tokens], scores, logits, mask & ~is_taken)
