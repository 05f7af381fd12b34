"""Gated sums of the residual stream: each channel of the hidden states and of a part's results has a factor."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn

from server.kernels.native.structures.layers import ResidualGate
from server.model.blocks.kept_tensors import KeptTensors

NUM_ARGUMENTS = 2  # of a forward: the hidden states and the results
TOLERANCE = 1e-5  # error of a sample, relative to its largest number


@dataclass(frozen=True)
class ResidualGateParts:
    """A module that returns the sum of two rows, with a factor for each of their channels."""

    module: Any
    kept: torch.Tensor  # float32 (hidden,), factors of the hidden states
    added: torch.Tensor  # float32 (hidden,), those of the results

    @classmethod
    def find(cls, module: Any) -> Self | None:
        """Return the parts of a module; None if it computes something else."""
        own = [*module.parameters()]
        if any(module.children()) or len(own) != 1 or own[0].ndim != 1 or _num_arguments(module) != NUM_ARGUMENTS:
            return None
        size, random = own[0].numel(), torch.Generator().manual_seed(0)
        one, other = torch.randn((2, 3, size), generator=random).to(own[0].device)
        ones, zeros = torch.ones_like(one), torch.zeros_like(one)
        try:
            with torch.inference_mode():
                kept, added, found = module(ones, zeros), module(zeros, ones), module(one, other)
        except (RuntimeError, TypeError, ValueError):  # a forward of another kind
            return None
        if not all(isinstance(each, torch.Tensor) and each.shape == one.shape for each in (kept, added, found)):
            return None
        wanted = kept * one + added * other
        if not float((found - wanted).abs().max()) <= TOLERANCE * float(wanted.abs().max()):
            return None
        return cls(module, *(each[0].detach().float().cpu() for each in (kept, added)))

    def build(self, kept: KeptTensors) -> ResidualGate:
        """Describe the sum to the kernels."""
        return kept.own(ResidualGate(kept.keep(self.kept), kept.keep(self.added)))


def _num_arguments(module: nn.Module) -> int:
    return len(inspect.signature(module.forward).parameters)
