"""Step's experts, which are not marked as experts for transformers' interface."""

from __future__ import annotations

from typing import Any

import torch

from server.model.experts.replacements.base import ReplacementExperts


class ClampedExperts(ReplacementExperts):
    """Mirrors ``Step3p7Experts``, where some layers clamp the gate's output."""

    def __init__(self, original: Any):
        super().__init__(original.gate_up_proj, original.down_proj, original.act_fn)
        self.limit: float | None = original.limit

    def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        gate = self.act_fn(gate)
        if self.limit is not None:
            gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        gated: torch.Tensor = gate * up
        return gated
