"""JetMoe's experts, which their router sorts the tokens for."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import WeightRenaming, WeightTransform

from .base import AdoptedExperts


class PairedExperts(AdoptedExperts):
    """The two ``JetMoeParallelExperts`` of a layer as the experts that they make together."""

    def __init__(self, original: Any):
        super().__init__(original.input_linear.weight, original.output_linear.weight, original.activation)

    @staticmethod
    def conversions() -> list[WeightTransform]:
        return [
            WeightRenaming(r"mlp\.input_linear\.weight", "mlp.experts.gate_up_proj"),
            WeightRenaming(r"mlp\.output_linear\.weight", "mlp.experts.down_proj"),
        ]


class PairedMoe(nn.Module):
    """Mirrors ``JetMoeMoE``. The experts of JetMoe's attention stay in the trunk."""

    def __init__(self, original: Any):
        super().__init__()
        self.router = original.router
        self.experts = PairedExperts(original)
        self.bias: nn.Parameter = original.bias  # (hidden,)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """``(batch, tokens, hidden)`` to the same shape."""
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        logits, index = self.router.layer(rows).float().topk(self.router.top_k, dim=1)  # (tokens, k)
        output: torch.Tensor = self.experts(rows, index, logits.softmax(1).type_as(rows))
        return output.view(hidden_states.shape) + self.bias
