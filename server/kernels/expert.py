"""Runs one expert on some rows, whatever the format of its weights in the slot."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Protocol

import torch

from server.kernels.format_table import QuantisedFormat, format_of
from server.kernels.formats import dense

PLAIN = {torch.bfloat16, torch.float16, torch.float32}  # dtypes of matrices that are not quantised


class ExpertsModule(Protocol):
    """The interface of transformers' experts classes (``transformers.integrations.moe``)."""

    num_experts: int
    has_gate: bool
    has_bias: bool
    has_post_expert_norm: bool
    is_transposed: bool  # matrices are (in, out)

    def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor: ...

    def act_fn(self, up: torch.Tensor) -> torch.Tensor: ...

    def post_expert_norm(self, output: torch.Tensor) -> torch.Tensor: ...


def transposed_names(module: ExpertsModule) -> Collection[str]:
    """The names of the matrices that are ``(in, out)``: all or none, unless the module lists some in ``transposed``."""
    named: Collection[str] | None = getattr(module, "transposed", None)
    if named is not None:
        return named
    return ("gate_up_proj", "up_proj", "down_proj") if module.is_transposed else ()


def scales_input(module: ExpertsModule) -> bool:
    """Return True if the router's weights scale an expert's input rows instead of its results."""
    return bool(getattr(module, "scales_input", False))


def alternates(module: ExpertsModule) -> bool:
    """Return True if the outputs of gate and up alternate in the module's ``gate_up_proj``."""
    return not getattr(module, "is_concatenated", True)


def in_module_order(module: ExpertsModule, name: str, halves: torch.Tensor, dim: int) -> torch.Tensor:
    """Bring concatenated outputs of a parameter's parts, along one dimension, into the order of the module."""
    if name != "gate_up_proj" or not alternates(module):
        return halves
    pairs: torch.Tensor = halves.unflatten(dim, (2, -1)).transpose(dim, dim + 1)  # type: ignore[no-untyped-call]
    return pairs.flatten(dim, dim + 1)


def in_parts_order(module: ExpertsModule, name: str, values: torch.Tensor, dim: int) -> torch.Tensor:
    """Bring outputs in the order of the module, along one dimension, into that of the parts; see above."""
    if name != "gate_up_proj" or not alternates(module):
        return values
    halves: torch.Tensor = values.unflatten(dim, (-1, 2)).transpose(dim, dim + 1)  # type: ignore[no-untyped-call]
    return halves.flatten(dim, dim + 1)


def run_expert(
    module: ExpertsModule,
    weights: Mapping[str, torch.Tensor],
    hidden_states: torch.Tensor,
    add: Callable[[str, torch.Tensor, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Run one expert on some rows: ``(rows, hidden)`` to ``(rows, hidden)`` in the dtype of the rows.

    Mirrors ``transformers.integrations.moe.grouped_mm_experts_forward``. Weights stay in their slot as read; they are
    converted or dequantised for one expert at a time.

    Args:
        add: adds something to the product with a matrix, given the matrix's name, its input and its output.
    """
    transposed = transposed_names(module)

    def project(rows: torch.Tensor, name: str) -> torch.Tensor:
        output = multiply(rows, name)
        if add is not None:
            add(name, rows, output)
        return output

    def multiply(rows: torch.Tensor, name: str) -> torch.Tensor:
        bias = weights[f"{name}_bias"].to(rows.dtype) if module.has_bias else None
        parts = _parts(weights, name)
        if not parts:
            return dense.project(weights, name, rows, bias, name in transposed)
        if len(parts) == 1:
            return parts[0][1].project(weights, name, rows, bias)
        output = torch.cat([kernel.project(weights, part, rows, None) for part, kernel in parts], 1)
        return in_module_order(module, name, output if bias is None else output + bias, 1)

    if module.has_gate:
        hidden = module._apply_gate(project(hidden_states, "gate_up_proj"))  # noqa: SLF001  (rows, intermediate)
    else:
        hidden = module.act_fn(project(hidden_states, "up_proj"))  # (rows, intermediate)
    output = project(hidden, "down_proj")  # (rows, hidden)
    return module.post_expert_norm(output) if module.has_post_expert_norm else output


def is_in_parts(weights: Mapping[str, torch.Tensor], name: str) -> bool:
    """Return True if a parameter is several quantised matrices in the slot."""
    return len(_parts(weights, name)) > 1


def dequantised(weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor | None:
    """Return a parameter's float32 matrix ``(out, in)``, of concatenated parts; None if it is not quantised."""
    parts = _parts(weights, name)
    return torch.cat([kernel.dequantise(weights, part) for part, kernel in parts]) if parts else None


def _parts(weights: Mapping[str, torch.Tensor], name: str) -> list[tuple[str, QuantisedFormat]]:
    """The quantised matrices of a parameter in the slot, with their formats; empty if it is not quantised.

    A parameter that a checkpoint stores as several matrices, such as gate and up, is ``NAME.0``, ``NAME.1`` and so on.
    Their outputs are concatenated, as their biases are.
    """
    if name in weights and weights[name].dtype in PLAIN:  # called twice per expert and step, so search no formats
        return []
    single = format_of(weights, name)
    if single is not None:
        return [(name, single)]
    parts: list[tuple[str, QuantisedFormat]] = []
    while (kernel := format_of(weights, part := f"{name}.{len(parts)}")) is not None:
        parts.append((part, kernel))
    return parts
