"""One expert on some rows, whatever format its weights have in the slot."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

import torch

from . import dense, fp4, fp8, int4, int8, int8_groups, q4, q8


class QuantisedFormat(Protocol):
    """What one of the modules of ``QUANTISED`` does."""

    def is_quantised(self, weights: Mapping[str, torch.Tensor], name: str) -> bool: ...

    def dequantise(self, weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor: ...

    def project(
        self, weights: Mapping[str, torch.Tensor], name: str, rows: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor: ...


PLAIN = {torch.bfloat16, torch.float16, torch.float32}  # dtypes of matrices that are no codes
QUANTISED: tuple[QuantisedFormat, ...] = (q4, q8, int4, fp4, fp8, int8, int8_groups)


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
        parts = _parts(weights, name)
        if not parts:
            return dense.project(weights, name, rows, bias, name in transposed)
        if len(parts) == 1:
            return parts[0][1].project(weights, name, rows, bias)
        output = torch.cat([kernel.project(weights, part, rows, None) for part, kernel in parts], 1)
        return output if bias is None else output + bias

    if module.has_gate:
        hidden = module._apply_gate(project(hidden_states, "gate_up_proj"))  # noqa: SLF001  (rows, intermediate)
    else:
        hidden = module.act_fn(project(hidden_states, "up_proj"))  # (rows, intermediate)
    output = project(hidden, "down_proj")  # (rows, hidden)
    return module.post_expert_norm(output) if module.has_post_expert_norm else output


def dequantised(weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor | None:
    """The float32 matrix ``(out, in)`` of a parameter, one row an output; None if it is not quantised."""
    parts = _parts(weights, name)
    return torch.cat([kernel.dequantise(weights, part) for part, kernel in parts]) if parts else None


def _parts(weights: Mapping[str, torch.Tensor], name: str) -> list[tuple[str, QuantisedFormat]]:
    """The quantised matrices of a parameter and their formats, by what lies in the slot; none if it is not quantised.

    A parameter that a checkpoint has in several matrices, as gate and up, is ``NAME.0``, ``NAME.1`` and so on, whose
    outputs follow each other.
    """
    if name in weights and weights[name].dtype in PLAIN:  # asked twice an expert and step, so answered without a search
        return []
    whole = _format(weights, name)
    if whole is not None:
        return [(name, whole)]
    parts: list[tuple[str, QuantisedFormat]] = []
    while (kernel := _format(weights, part := f"{name}.{len(parts)}")) is not None:
        parts.append((part, kernel))
    return parts


def _format(weights: Mapping[str, torch.Tensor], name: str) -> QuantisedFormat | None:
    return next((kernel for kernel in QUANTISED if kernel.is_quantised(weights, name)), None)
