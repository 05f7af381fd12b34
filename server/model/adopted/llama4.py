"""Llama 4's experts, which stock transformers runs all of for every token."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .base import AdoptedExperts


class InputScaledExperts(AdoptedExperts):
    """Mirrors ``Llama4TextExperts``, which are given their inputs times the router's scores."""

    is_transposed = True
    scales_input = True

    def __init__(self, original: Any):
        super().__init__(original.gate_up_proj, original.down_proj, original.act_fn)


class InputScaledMoe(nn.Module):
    """Mirrors ``Llama4TextMoe``, but for the experts that are not chosen: they get zeros, and give zeros."""

    def __init__(self, original: Any):
        super().__init__()
        self.router = original.router
        self.experts = InputScaledExperts(original.experts)
        self.shared_expert = original.shared_expert

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``(batch, tokens, hidden)`` to ``(batch * tokens, hidden)``, and the router's logits."""
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        scores, logits = self.router(rows)  # (tokens, experts)
        index = logits.topk(self.router.top_k, dim=1).indices  # (tokens, k)
        output: torch.Tensor = self.shared_expert(rows) + self.experts(rows, index, scores.gather(1, index))
        return output, logits
