"""One expert on some rows, whatever format its weights have in the slot."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

import torch

from . import dense, int4, int8


class ExpertsModule(Protocol):
    """What transformers' experts classes tell of themselves (``transformers.integrations.moe``)."""

    num_experts: int
    has_gate: bool
    has_bias: bool
    has_post_expert_norm: bool
    is_transposed: bool  # matrices lie (in, out)

    def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor: ...

    def act_fn(self, up: torch.Tensor) -> torch.Tensor: ...

    def post_expert_norm(self, output: torch.Tensor) -> torch.Tensor: ...


def transposed_names(module: ExpertsModule) -> Collection[str]:
    """Which matrices of a module lie ``(in, out)``: all or none, unless it names those that do in ``transposed``."""
    named: Collection[str] | None = getattr(module, "transposed", None)
    if named is not None:
        return named
    return ("gate_up_proj", "up_proj", "down_proj") if module.is_transposed else ()


def scales_input(module: ExpertsModule) -> bool:
    """Whether an expert is given its rows times the router's weights, and else its results are weighted by them."""
    return bool(getattr(module, "scales_input", False))


def run_expert(module: ExpertsModule, weights: Mapping[str, torch.Tensor], hidden_states: torch.Tensor) -> torch.Tensor:
    """One expert on some rows: ``(rows, hidden)`` to ``(rows, hidden)`` in the dtype of the rows.

    Mirrors ``transformers.integrations.moe.grouped_mm_experts_forward``. Weights stay in their slot as they were
    read; what else a product needs of them is made for one expert at a time.
    """
    transposed = transposed_names(module)

    def project(rows: torch.Tensor, name: str) -> torch.Tensor:
        bias = weights[f"{name}_bias"].to(rows.dtype) if module.has_bias else None
        if int4.is_quantised(weights, name):
            return int4.project(weights, name, rows, bias)
        if int8.is_quantised(weights, name):
            return int8.project(weights, name, rows, bias)
        return dense.project(weights, name, rows, bias, name in transposed)

    if module.has_gate:
        hidden = module._apply_gate(project(hidden_states, "gate_up_proj"))  # noqa: SLF001  (rows, intermediate)
    else:
        hidden = module.act_fn(project(hidden_states, "up_proj"))  # (rows, intermediate)
    output = project(hidden, "down_proj")  # (rows, hidden)
    return module.post_expert_norm(output) if module.has_post_expert_norm else output
