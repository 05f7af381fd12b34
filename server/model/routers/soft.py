"""Soft MoE: experts run on mixtures of all tokens."""

from __future__ import annotations

import torch

from server.model.routers.base import Router, SlotDispatch


class SoftRouter(Router):
    """Gives each slot of each expert a mixture of all tokens, and each token a mixture of all slots' outputs.

    With logits ``L = X P``, ``(tokens, slots)``, the inputs of the slots are ``softmax(L, over tokens)^T X`` and the
    outputs are ``softmax(L, over slots) Y``, where ``Y`` has the experts' outputs (Puigcerver et al. 2023,
    arXiv 2308.00951, equations 1 to 3). Slots of an expert adjoin.

    Every token is part of every slot, so a decoder can't use it.

    Args:
        slots_per_expert: slots of each expert, whatever the number of tokens.
    """

    is_causal = is_independent = False
    may_drop = False

    def __init__(self, hidden_size: int, num_experts: int, *, slots_per_expert: int = 1):
        super().__init__(hidden_size, num_experts * slots_per_expert, num_experts)
        self.slots_per_expert = slots_per_expert

    def max_experts(self, num_tokens: int) -> int:
        return self.num_experts if num_tokens else 0

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor) -> SlotDispatch:
        logits = self.logits(hidden_states)
        mixtures = logits.masked_fill(~mask.unsqueeze(-1), -torch.inf).softmax(0).T  # (slots, tokens)
        scores = logits.softmax(-1)  # (tokens, slots)
        experts = torch.arange(self.num_experts, device=logits.device).repeat_interleave(self.slots_per_expert)
        weights = scores * mask.unsqueeze(-1)
        return SlotDispatch(experts, mixtures, weights, scores, logits, torch.zeros_like(mask))
