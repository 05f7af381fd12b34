"""Causal convolutions of each channel that are added to their input, as the native kernels run them."""

from __future__ import annotations

from copy import deepcopy
from ctypes import addressof
from dataclasses import dataclass
from typing import Any, Protocol, Self

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
    """A module that returns the sum of its input and of a causal convolution of each channel, or a part of it."""

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
        scale = _scale_of_sum(module, convolution)
        if scale is None:
            return None
        taps = convolution.weight.detach().squeeze(1).T.double().cpu()  # (width, channels)
        taps[-1] += 1
        return cls(module, (taps * scale).float())


def _scale_of_sum(module: Any, convolution: nn.Conv1d) -> float | None:
    """Return the factor by which a module multiplies the sum of its input and of a causal convolution.

    It is 1 or the inverse root of the number of terms, as a copy of the module with random taps shows; None if the copy
    computes something else.
    """
    random, (channels, _, width) = torch.Generator().manual_seed(0), convolution.weight.shape
    taps = torch.randn((width, channels), generator=random)
    rows = torch.randn((width + SAMPLE_TOKENS, channels), generator=random)
    before = torch.cat([torch.zeros(width - 1, channels), rows])
    wanted = rows + sum(before[tap : tap + len(rows)] * taps[tap] for tap in range(width))
    copied = deepcopy(module).to("cpu", torch.float32)
    own: Any = next(copied.children())
    own.weight = nn.Parameter(taps.T.unsqueeze(1).contiguous(), requires_grad=False)
    try:
        with torch.inference_mode():
            found = copied(rows[None])
    except (RuntimeError, TypeError, ValueError, AttributeError):  # a forward of another kind
        return None
    if not isinstance(found, torch.Tensor) or found.shape != (1, *rows.shape):
        return None
    for scale in (1.0, (width + 1) ** -0.5):
        if float((found[0] - wanted * scale).abs().max() / wanted.abs().max()) <= TOLERANCE:
            return scale
    return None


class ChannelTaps(Protocol):
    """A convolution of each channel of a family's module."""

    @property
    def module(self) -> Any:
        """The module, with the number of its layer."""

    @property
    def weight(self) -> torch.Tensor:
        """float32 ``(width, channels)``, the oldest token first."""


class NativeConvolution:
    """A convolution with the last inputs of each sequence as its state.

    Args:
        parts: of the family's module, with its weights and its layer.
        number: among the convolutions of the layer.
    """

    def __init__(self, parts: ChannelTaps, number: int):
        width, channels = parts.weight.shape
        self.number = number
        self._key = StateKey(int(parts.module.layer_idx), CONV, number)
        self._shape = StateShape((width - 1, channels), torch.float32)
        self._kept = KeptTensors()
        first_row = self._kept.keep(torch.zeros(1, *self._shape.shape))  # the only one, in trials
        weight = self._kept.keep(parts.weight)
        self._spec = Convolution(weight=weight, states=first_row, width=width, channels=channels, dilation=1)
        self._spec.bias = self._kept.keep(getattr(parts, "bias", None))

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
