"""DBRX's experts, whose rows are all in one flat matrix."""

from __future__ import annotations

from typing import Any

import torch
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    WeightTransform,
)

from server.model.experts.replacements.base import ReplacementExperts


class FlatExperts(ReplacementExperts):
    """Mirrors ``DbrxExperts``, where each expert has some neighbouring rows of the flat ``w1``, ``v1`` and ``w2``.

    ``w2`` is multiplied untransposed, so an expert's second matrix is transposed here and its first is not.
    """

    transposed = ("down_proj",)

    def __init__(self, original: Any):
        flat, count = original.mlp, original.num_experts
        gate, up, down = (matrix.view(count, -1, matrix.shape[-1]) for matrix in (flat.w1, flat.v1, flat.w2))
        super().__init__(torch.cat([gate, up], 1), down, flat.activation_fn)

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """``(batch, tokens, hidden)`` to the same shape."""
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        return super().forward(rows, top_k_index, top_k_weights).view(hidden_states.shape)

    @staticmethod
    def conversions() -> list[WeightTransform]:
        return [
            WeightRenaming(r"experts\.mlp\.w2", "experts.down_proj"),
            WeightConverter(
                [r"experts\.mlp\.w1", r"experts\.mlp\.v1"],
                "experts.gate_up_proj",
                operations=[MergeModulelist(dim=0), Concatenate(dim=1)],
            ),
        ]
