"""Gated sums of the residual stream: each channel of the hidden states and of a part's results has a factor.

A sum may have a bias of each channel, too.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Self

import torch

from server.kernels.native.structures.layers import ResidualGate
from server.model.blocks.kept_tensors import KeptTensors

NUM_ARGUMENTS, RESIDUAL = 2, "residual"  # of a forward: the hidden states, with this name, and the results
TOLERANCE = 1e-5  # error of a sample, relative to its largest number


@dataclass(frozen=True)
class ResidualGateParts:
    """A module that returns the sum of two rows, with a factor for each of their channels."""

    module: Any
    kept: torch.Tensor  # float32 (hidden,), factors of the hidden states
    added: torch.Tensor  # float32 (hidden,), those of the results
    bias: torch.Tensor | None = None  # float32 (hidden,)
    results: int = 1  # number of the argument with the results

    @classmethod
    def find(cls, module: Any) -> Self | None:
        """Return the parts of a module; None if it computes something else."""
        own, names = [*module.parameters()], [*inspect.signature(module.forward).parameters]
        if any(module.children()) or not own or own[0].ndim != 1 or len({each.shape for each in own}) != 1:
            return None
        if len(names) != NUM_ARGUMENTS:
            return None
        size, random = own[0].numel(), torch.Generator().manual_seed(0)
        one, other = torch.randn((2, 3, size), generator=random, dtype=torch.float64).to(own[0].device)
        ones, zeros = torch.ones_like(one), torch.zeros_like(one)
        try:
            with torch.inference_mode():
                bias = module(zeros, zeros)
                first, second, found = module(ones, zeros), module(zeros, ones), module(one, other)
        except (RuntimeError, TypeError, ValueError):  # a forward of another kind
            return None
        if not all(isinstance(each, torch.Tensor) and each.shape == one.shape for each in (bias, first, second, found)):
            return None
        first, second = first - bias, second - bias
        wanted = first * one + second * other + bias
        if not float((found - wanted).abs().max()) <= TOLERANCE * float(wanted.abs().max()):
            return None
        results = 1 - names.index(RESIDUAL) if RESIDUAL in names else 1
        factors = (first, second) if results else (second, first)
        kept, added, bias = (each[0].detach().float().cpu() for each in (*factors, bias))
        return cls(module, kept, added, bias if bias.any() else None, results)

    def build(self, kept: KeptTensors) -> ResidualGate:
        """Describe the sum to the kernels."""
        return kept.own(ResidualGate(kept.keep(self.kept), kept.keep(self.added), kept.keep(self.bias)))
