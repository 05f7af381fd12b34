"""Experts whose weights are plain floating-point matrices."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F


def run_expert(module: nn.Module, weights: Mapping[str, torch.Tensor], hidden_states: torch.Tensor) -> torch.Tensor:
    """One expert on some rows: ``(rows, hidden)`` to ``(rows, hidden)`` in the dtype of the rows.

    Mirrors the experts classes of transformers (``transformers.integrations.moe``): ``module`` tells whether there
    is a gate, how it is applied, and whether matrices lie transposed. Weights of another dtype are converted here,
    one expert at a time, so that a slot keeps the checkpoint's bytes.
    """
    dtype = hidden_states.dtype

    def project(rows: torch.Tensor, name: str) -> torch.Tensor:
        matrix = weights[name].to(dtype)
        bias = weights[f"{name}_bias"].to(dtype) if module.has_bias else None
        return F.linear(rows, matrix.mT if module.is_transposed else matrix, bias)

    if module.has_gate:
        hidden = module._apply_gate(project(hidden_states, "gate_up_proj"))  # noqa: SLF001  (rows, intermediate)
    else:
        hidden = module.act_fn(project(hidden_states, "up_proj"))  # (rows, intermediate)
    output = project(hidden, "down_proj")  # (rows, hidden)
    return module.post_expert_norm(output) if module.has_post_expert_norm else output
