"""Experts that transformers has no interface to, put behind the seam.

A model that is being built gets modules of ours in their places. Each has the parameters that the checkpoint has, and
is called as the original is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

from server.kernels.expert import ExpertsModule

from .seam import current_seam


class IdentityExperts(nn.Module):
    """LongCat's: choices beyond the last expert are of experts that give what they are given.

    Mirrors ``LongcatFlashExperts``, whose ``gate_up_proj`` has rows for the experts that compute nothing, too; a
    checkpoint has none.
    """

    has_gate, has_bias, has_post_expert_norm, is_transposed = True, False, False, False
    _is_expert_parallel = False

    def __init__(self, original: Any):
        super().__init__()
        self.num_experts = int(original.num_routed_experts)
        self.act_fn = original.act_fn
        self.gate_up_proj = nn.Parameter(original.gate_up_proj[: self.num_experts])
        self.down_proj = nn.Parameter(original.down_proj)

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """``(tokens, hidden)``, ``(tokens, k)`` and ``(tokens, k)`` give ``(tokens, hidden)``."""
        module = cast("ExpertsModule", self)
        output = current_seam().run_experts(module, hidden_states, top_k_index, top_k_weights)
        kept = top_k_weights.masked_fill(top_k_index < self.num_experts, 0).sum(-1, keepdim=True)  # (tokens, 1)
        return output + (hidden_states * kept).to(output.dtype)

    def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        gated: torch.Tensor = self.act_fn(gate) * up
        return gated


ADOPTED: dict[str, Callable[[Any], nn.Module]] = {"LongcatFlashExperts": IdentityExperts}  # by the original's class


def adopt_experts(model: nn.Module) -> None:
    """Put modules of ours in the places of experts that would not come to the seam."""
    found = {name: module for name, module in model.named_modules() if type(module).__name__ in ADOPTED}
    for name, module in found.items():
        model.set_submodule(name, ADOPTED[type(module).__name__](module))
