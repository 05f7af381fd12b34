"""Activations of experts (``Activation`` of the native kernels), with the gate or without."""

from __future__ import annotations

import triton
import triton.language as tl

SILU: tl.constexpr = tl.constexpr(0)
GELU: tl.constexpr = tl.constexpr(1)
GELU_TANH: tl.constexpr = tl.constexpr(2)
RELU: tl.constexpr = tl.constexpr(3)
RELU_SQUARED: tl.constexpr = tl.constexpr(4)
CLAMPED_SWISH: tl.constexpr = tl.constexpr(5)
QUICK_GELU: tl.constexpr = tl.constexpr(6)
SOFT_CAPPED: tl.constexpr = tl.constexpr(7)
LIMITED_SILU: tl.constexpr = tl.constexpr(8)


@triton.jit
def _soft_capped(x, cap):
    return cap * (2.0 * tl.sigmoid(2.0 * x / cap) - 1.0)  # cap * tanh(x / cap)


@triton.jit
def activate(gate, up, alpha, limit, KIND: tl.constexpr, HAS_GATE: tl.constexpr):
    """Activate ``gate``, and multiply by ``up`` if there is a gate; a limit above zero clamps or caps both."""
    if KIND == SOFT_CAPPED:
        return _soft_capped(gate, alpha) * tl.sigmoid(gate) * _soft_capped(up, limit)
    if HAS_GATE:
        if KIND != LIMITED_SILU:
            gate = tl.where(limit > 0.0, tl.minimum(gate, limit), gate)
        up = tl.where(limit > 0.0, tl.minimum(tl.maximum(up, -limit), limit), up)
    if KIND == CLAMPED_SWISH:
        return gate * tl.sigmoid(alpha * gate) * (up + 1.0)
    if KIND == LIMITED_SILU:
        value = tl.minimum(gate * tl.sigmoid(gate), limit)
    elif KIND == SILU:
        value = gate * tl.sigmoid(gate)
    elif KIND == GELU:
        value = 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    elif KIND == GELU_TANH:
        inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        value = gate * tl.sigmoid(2.0 * inner)  # 0.5 * (1 + tanh(inner))
    elif KIND == RELU:
        value = tl.maximum(gate, 0.0)
    elif KIND == RELU_SQUARED:
        value = tl.maximum(gate, 0.0) * tl.maximum(gate, 0.0)
    else:
        value = gate * tl.sigmoid(1.702 * gate)
    if HAS_GATE:
        value = value * up
    return value
