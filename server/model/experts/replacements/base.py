"""ReplacementExperts: the base of replacements, with the attributes of transformers' experts classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from transformers.core_model_loading import WeightTransform

from server.kernels.expert import ExpertsModule
from server.model.hooks import current_hooks


class ReplacementExperts(nn.Module):
    """Gated experts whose matrices are all in one tensor each, as ``transformers.integrations.moe`` has them.

    Args:
        gate_up_proj: of all experts, ``(experts, 2 * intermediate, hidden)``; if transposed ``(experts, hidden,
            2 * intermediate)``.
        down_proj: ``(experts, hidden, intermediate)``; if transposed ``(experts, intermediate, hidden)``.
        act_fn: activation of the gate.
    """

    has_gate, has_bias, has_post_expert_norm, is_transposed = True, False, False, False
    _is_expert_parallel = False

    def __init__(self, gate_up_proj: torch.Tensor, down_proj: torch.Tensor, act_fn: Callable[..., Any]):
        super().__init__()
        self.num_experts = len(down_proj)
        self.act_fn = act_fn
        self.gate_up_proj = nn.Parameter(gate_up_proj)
        self.down_proj = nn.Parameter(down_proj)

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Run experts: ``(tokens, hidden)``, ``(tokens, k)`` and ``(tokens, k)`` to ``(tokens, hidden)``."""
        module = cast("ExpertsModule", self)
        return current_hooks().run_experts(module, hidden_states, top_k_index, top_k_weights)

    def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        gated: torch.Tensor = self.act_fn(gate) * up
        return gated

    @staticmethod
    def conversions() -> list[WeightTransform]:
        """Return conversions of a checkpoint's tensors besides transformers' own; none where names and shapes agree."""
        return []
