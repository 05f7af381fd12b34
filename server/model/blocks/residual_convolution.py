"""Causal convolutions of each channel that are added to their input, as the native kernels run them."""

from __future__ import annotations

from ctypes import addressof
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn

from server.kernels.native.structures.mixers import Convolution
from server.model.blocks.kept_tensors import KeptTensors
from server.model.recurrent.states import StateCache, StateKey, StateShape, StateShapes

CONV = "conv"  # kind of ``StateKey``
SAMPLE_TOKENS = 3  # more than the width
TOLERANCE = 1e-5  # error of a sample, relative to its largest number


@dataclass(frozen=True)
class ResidualConvolution:
    """A module that returns the sum of its input and of a causal convolution of each channel."""

    module: Any
    weight: torch.Tensor  # float32 (width, channels), the oldest token first, with the input's own factor of 1

    @classmethod
    def find(cls, module: nn.Module) -> Self | None:
        """Return the parts of a module; None if it computes something else."""
        children = [*module.children()]
        convolution = children[0] if len(children) == 1 else None
        if not isinstance(convolution, nn.Conv1d) or convolution.weight.shape[1] != 1 or convolution.bias is not None:
            return None
        if any(True for _ in module.parameters(recurse=False)) or not hasattr(module, "layer_idx"):
            return None
        taps = convolution.weight.detach().squeeze(1).T.double().cpu()  # (width, channels)
        width, channels = taps.shape
        random = torch.Generator().manual_seed(0)
        rows = torch.randn((width + SAMPLE_TOKENS, channels), generator=random)
        before = torch.cat([torch.zeros(width - 1, channels), rows]).double()
        wanted = rows + sum(before[tap : tap + len(rows)] * taps[tap] for tap in range(width))
        try:
            with torch.inference_mode():
                found = module(rows.to(convolution.weight.device)[None])
        except (RuntimeError, TypeError, ValueError, AttributeError):  # a forward of another kind
            return None
        if not isinstance(found, torch.Tensor) or found.shape != (1, *rows.shape):
            return None
        error = float((found[0].double().cpu() - wanted).abs().max() / wanted.abs().max())
        taps[-1] += 1
        rounding = max(TOLERANCE, 2 * torch.finfo(convolution.weight.dtype).eps)
        return cls(module, taps.float()) if error <= rounding else None


class NativeConvolution:
    """A convolution with the last inputs of each sequence as its state.

    Args:
        parts: of the family's module.
        number: among the convolutions of the layer.
    """

    def __init__(self, parts: ResidualConvolution, number: int):
        width, channels = parts.weight.shape
        self._key = StateKey(int(parts.module.layer_idx), CONV, number)
        self._shape = StateShape((width - 1, channels), torch.float32)
        self._kept = KeptTensors()
        first_row = self._kept.keep(torch.zeros(1, *self._shape.shape))  # the only one, in trials
        weight = self._kept.keep(parts.weight)
        self._spec = Convolution(weight=weight, states=first_row, width=width, channels=channels, dilation=1)

    @property
    def address(self) -> int:
        return addressof(self._spec)

    @property
    def states(self) -> StateShapes:
        """The state of one sequence."""
        return {self._key: self._shape}

    def bind(self, states: StateCache | None) -> None:
        """Keep the states of sequences in this memory."""
        assert states is not None
        self._spec.states = states.tensor(self._key).data_ptr()
