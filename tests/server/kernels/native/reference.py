"""Gates in float64, and bounds of the rounding errors of native gates and products."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from server.kernels.native.activation import FUNCTIONS
from server.kernels.native.structures.experts import Activation, Gate
from tests.server.kernels.native.matrices import GROUP, Weights

FLOAT32 = 2.0**-24  # half a unit in the last place of 1
BFLOAT16 = 2.0**-8
LEAST = 1e-7  # float16 has no smaller numbers
STEEPEST = 1.2  # the greatest slope of any activation but the squared ReLU
ACTIVATION = 16 * FLOAT32  # error of an activation and its gate, by the largest result that they may have
DEVIATIONS = 4.0  # times the root of the summed squares of half steps: seven standard deviations


def product_error(weights: Weights, x: torch.Tensor, *, is_exact: bool) -> torch.Tensor:
    """Bound the error of each product with float64 rows ``x (rows, inputs)``: ``(rows, outputs)``.

    Rows may be rounded to bfloat16, or to int8 codes in groups. The errors of their numbers are independent, so that
    those of many add up to less than the sum of the largest.
    """
    matrix, size = weights.values, x.abs()
    most = 2 * matrix.shape[1] * FLOAT32 * (size @ matrix.abs().T) + LEAST
    if is_exact:
        return most
    half_steps = BFLOAT16 * size
    if not weights.is_plain:
        groups = F.pad(size, (0, -size.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
        half_steps = (groups.amax(-1) / 127 * 0.501).repeat_interleave(GROUP, 1)[:, : size.shape[1]]
    together = DEVIATIONS * (half_steps.square() @ matrix.square().T).sqrt()
    return most + torch.minimum(half_steps @ matrix.abs().T, together)


def apply_gate(gate: Gate, rows: torch.Tensor) -> torch.Tensor:
    """Activate rows, and multiply them by their up projection if there is one."""
    if not gate.has_gate:
        return _activate(gate, rows)
    left, up = _split(gate, rows)
    return _activate(gate, left) * up


def gate_error(gate: Gate, rows: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
    """Bound the error of activated rows, if that of ``rows (rows, outputs)`` is bounded by ``error``."""
    if not gate.has_gate:
        return _slope(gate, rows, error) * error + ACTIVATION * rows.abs() + LEAST
    left, up = _split(gate, rows)
    left_error, up_error = error.chunk(2, 1) if not gate.is_interleaved else (error[:, ::2], error[:, 1::2])
    own = _activate(gate, left).abs()
    change = _slope(gate, left, left_error) * left_error
    rounding = ACTIVATION * torch.maximum(left.abs(), own) * up.abs() + LEAST
    return change * (up.abs() + up_error) + own * up_error + rounding


def _split(gate: Gate, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the factors of a gate before the activation."""
    left, up = (rows[:, ::2], rows[:, 1::2]) if gate.is_interleaved else rows.chunk(2, 1)
    if gate.activation == Activation.SOFT_CAPPED:
        return left, torch.tanh(up / gate.limit) * gate.limit
    if gate.activation == Activation.LIMITED_SILU:
        return left, up.clamp(-gate.limit, gate.limit)
    if gate.limit > 0:
        left, up = left.clamp(max=gate.limit), up.clamp(-gate.limit, gate.limit)
    return left, up + 1 if gate.activation == Activation.CLAMPED_SWISH else up


def _activate(gate: Gate, rows: torch.Tensor) -> torch.Tensor:
    if gate.activation == Activation.CLAMPED_SWISH:
        return rows * torch.sigmoid(gate.alpha * rows)
    if gate.activation == Activation.SOFT_CAPPED:
        return torch.tanh(rows / gate.alpha) * gate.alpha * torch.sigmoid(rows)
    if gate.activation == Activation.LIMITED_SILU:
        return F.silu(rows).clamp(max=gate.limit)
    return FUNCTIONS[Activation(gate.activation)](rows)


def _slope(gate: Gate, rows: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
    """Bound the slope of an activation near some numbers."""
    if gate.activation == Activation.RELU_SQUARED:
        return 2 * (rows.abs() + error)
    return torch.full_like(rows, STEEPEST)
