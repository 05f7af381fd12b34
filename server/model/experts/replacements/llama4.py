"""Llama 4's experts; transformers' own code runs all of them for every token."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from server.model.experts.replacements.base import ReplacementExperts


class InputScaledExperts(ReplacementExperts):
    """Mirrors ``Llama4TextExperts``, whose inputs are multiplied by the router's scores."""

    is_transposed = True
    scales_input = True

    def __init__(self, original: Any):
        super().__init__(original.gate_up_proj, original.down_proj, original.act_fn)


class InputScaledMoe(nn.Module):
    """Mirrors ``Llama4TextMoe``, but skips experts that are not chosen, whose inputs and outputs are zeros."""

    def __init__(self, original: Any):
        super().__init__()
        self.router = original.router
        self.experts = InputScaledExperts(original.experts)
        self.shared_expert = original.shared_expert

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``(batch * tokens, hidden)`` for ``(batch, tokens, hidden)``, and the router's logits."""
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        scores, logits = self.router(rows)  # (tokens, experts)
        index = logits.topk(self.router.top_k, dim=1).indices  # (tokens, k)
        output: torch.Tensor = self.shared_expert(rows) + self.experts(rows, index, scores.gather(1, index))
        return output, logits
