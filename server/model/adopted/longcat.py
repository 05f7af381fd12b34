"""LongCat's experts, some of which compute nothing."""

from __future__ import annotations

from typing import Any

import torch

from .base import AdoptedExperts


class IdentityExperts(AdoptedExperts):
    """Choices beyond the last expert are of experts that give what they are given.

    Mirrors ``LongcatFlashExperts``, whose ``gate_up_proj`` has rows for the experts that compute nothing, too; a
    checkpoint has none.
    """

    def __init__(self, original: Any):
        super().__init__(original.gate_up_proj[: original.num_routed_experts], original.down_proj, original.act_fn)

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """``(tokens, hidden)``, ``(tokens, k)`` and ``(tokens, k)`` give ``(tokens, hidden)``."""
        output = super().forward(hidden_states, top_k_index, top_k_weights)
        kept = top_k_weights.masked_fill(top_k_index < self.num_experts, 0).sum(-1, keepdim=True)  # (tokens, 1)
        return output + (hidden_states * kept).to(output.dtype)
