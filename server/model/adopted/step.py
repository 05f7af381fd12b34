"""Step's experts, which lack nothing but the mark of transformers' interface."""

from __future__ import annotations

from typing import Any

import torch

from .base import AdoptedExperts


class ClampedExperts(AdoptedExperts):
    """Mirrors ``Step3p7Experts``, some layers of which bound what the gate lets through."""

    def __init__(self, original: Any):
        super().__init__(original.gate_up_proj, original.down_proj, original.act_fn)
        self.limit: float = original.limit

    def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        gated: torch.Tensor = self.act_fn(gate).clamp(max=self.limit) * up.clamp(-self.limit, self.limit)
        return gated
