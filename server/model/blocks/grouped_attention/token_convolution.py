"""Causal convolutions of keys or values to whose taps each token adds numbers of its own (Inkling 2)."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn

from server.model.blocks.linears import LINEARS, Linear

STATIC, TAPS, HEADS = "static_weight", "weight_proj", "num_heads"  # names in a module
SAMPLE_TOKENS, SAMPLE_INPUTS = 3, 8  # tokens, more than the width; numbers that taps are made from
TOLERANCE = 1e-5  # error of a sample, relative to its largest number


@dataclass(frozen=True)
class TokenConvolution:
    """A module that returns a part of the sum of its input and of a convolution whose taps each token changes."""

    module: Any
    weight: torch.Tensor  # float32 (width, channels), the oldest token first, with the input's own factor
    taps: Linear  # (heads * width, hidden), what a token adds, the newest first
    scale: float  # of what it adds

    @classmethod
    def find(cls, module: Any) -> Self | None:
        """Return the parts of a module; None if it computes something else."""
        static, taps = getattr(module, STATIC, None), getattr(module, TAPS, None)
        if not isinstance(static, nn.Parameter) or not isinstance(taps, LINEARS) or not hasattr(module, HEADS):
            return None
        if taps.bias is not None or {*module.parameters()} != {static, *taps.parameters()}:
            return None
        scale = float((2 * static.shape[0] + 1) ** -0.5)
        if not _convolves(module, taps, scale):
            return None
        weight = static.detach().double().cpu().flip(0)
        weight[-1] += 1
        return cls(module, (weight * scale).float(), taps, scale)


def _convolves(module: Any, taps_of: Linear, scale: float) -> bool:
    """Return whether a copy of a module with other weights computes such a convolution."""
    random, (width, channels), heads = torch.Generator().manual_seed(0), module.static_weight.shape, module.num_heads
    static = torch.randn((width, channels), generator=random)
    linear = torch.randn((taps_of.out_features, SAMPLE_INPUTS), generator=random) * SAMPLE_INPUTS**-0.5
    small = nn.Linear(SAMPLE_INPUTS, len(linear), bias=False)
    small.weight = nn.Parameter(linear, requires_grad=False)
    copied = deepcopy(module, {id(taps_of): small}).to("cpu", torch.float32)
    copied.static_weight = nn.Parameter(static, requires_grad=False)
    tokens = width + SAMPLE_TOKENS
    rows = torch.randn((tokens, channels), generator=random)
    given = torch.randn((tokens, linear.shape[1]), generator=random)
    taps = (
        (given @ linear.T).view(tokens, heads, width).repeat_interleave(channels // heads, 1)
    )  # (tokens, channels, width)
    before = torch.cat([torch.zeros(width - 1, channels), rows])
    convolved = rows.clone()
    for lag in range(width):
        first = width - 1 - lag
        convolved += before[first : first + tokens] * (static[lag] + taps[..., lag])
    wanted = convolved * scale
    try:
        with torch.inference_mode():
            found = copied(rows[None], given[None])
    except (RuntimeError, TypeError, ValueError, AttributeError):  # a forward of another kind
        return False
    is_same = isinstance(found, torch.Tensor) and found.shape == (1, *wanted.shape)
    return is_same and float((found[0] - wanted).abs().max()) <= TOLERANCE * float(wanted.abs().max())
