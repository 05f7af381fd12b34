"""LongCat's experts, some of which compute nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from server.model.experts.replacements.base import ReplacementExperts


class IdentityExperts(ReplacementExperts):
    """Experts whose output for choices beyond the last expert is their input.

    A checkpoint that transformers before 5.25 saved has rows of ``gate_up_proj`` for these choices, too.

    Args:
        original: a ``LongcatFlashExperts``.
        num_identities: choices beyond the last expert.
    """

    def __init__(self, original: Any, num_identities: int):
        super().__init__(original.gate_up_proj, original.down_proj, original.act_fn)
        self.num_identities = num_identities
        self.num_stored_experts = self.num_experts + num_identities
        self.adds_inputs = True

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Run experts: ``(tokens, hidden)``, ``(tokens, k)`` and ``(tokens, k)`` to ``(tokens, hidden)``."""
        output = super().forward(hidden_states, top_k_index, top_k_weights)
        if not self.adds_inputs:
            return output
        kept = top_k_weights.masked_fill(top_k_index < self.num_experts, 0).sum(-1, keepdim=True)  # (tokens, 1)
        return output + (hidden_states * kept).to(output.dtype)


class IdentityMoe(nn.Module):
    """Mirrors ``LongcatFlashMoE``, which has experts compute with weights of 0 for choices that compute nothing."""

    def __init__(self, original: Any):
        super().__init__()
        self.router = original.router
        self.experts = IdentityExperts(original.experts, original.zero_expert_num)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Route and run experts: ``(..., hidden)`` to ``(..., hidden)``."""
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        _, weights, indices = self.router(rows)
        output: torch.Tensor = self.experts(rows, indices, weights)
        return output.reshape(hidden_states.shape)


@contextmanager
def without_identities(model: nn.Module) -> Iterator[None]:
    """Have the choices of a model that are no experts add nothing, as experts do whose hooks return zeros."""
    found = [module for module in model.modules() if isinstance(module, IdentityExperts)]
    for module in found:
        module.adds_inputs = False
    try:
        yield
    finally:
        for module in found:
            module.adds_inputs = True
