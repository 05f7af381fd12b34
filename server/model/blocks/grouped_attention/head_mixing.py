"""Queries and keys that are mixed with those of the tokens before, and values of the token before (ZAYA)."""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import addressof
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn

from server.kernels.native.linear import plain_matrix
from server.kernels.native.slot_format import PLAIN
from server.kernels.native.structures.matrices import Matrix
from server.kernels.native.structures.mixers import Convolution, HeadMixing
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.kept_tensors import KeptTensors
from server.model.blocks.linears import LINEARS, Linear
from server.model.blocks.norms import Norm
from server.model.recurrent.states import StateCache, StateKey, StateShape, StateShapes

MIXED, NORM = "qkv_proj", "qk_norm"  # names of parts in an attention
LINEAR_NAMES = ("q_proj", "k_proj", "v_proj_current", "v_proj_delayed")
CONVOLUTION_NAMES = ("conv_qk_depthwise", "conv_qk_grouped")
KEY_FACTORS = "temp"  # parameter of the norm: of each head of keys
CONV = "conv"  # kind of ``StateKey``


@dataclass(frozen=True)
class Delay:
    """A convolution that takes some numbers of values from the token before, and adds biases to all."""

    module: Any
    weight: torch.Tensor  # float32 (2, values)
    bias: torch.Tensor | None  # float32 (values,)


@dataclass(frozen=True)
class HeadMixingParts:
    """The projections of an attention, the convolutions of its queries and keys, and the norm of their heads."""

    module: Any
    query: Linear
    key: Linear
    value: Linear
    delayed: Linear  # values behind the others
    channels: nn.Conv1d  # of each channel
    of_heads: nn.Conv1d  # of the channels of each head
    norm: nn.Module  # gives heads the length of the root of their size, and keys factors

    @classmethod
    def find(cls, attention: Any) -> Self | None:
        """Return the parts of an attention; None if it has others."""
        module, norm = getattr(attention, MIXED, None), getattr(attention, NORM, None)
        parts: list[Any] = [getattr(module, name, None) for name in (*LINEAR_NAMES, *CONVOLUTION_NAMES)]
        linears, convolutions = parts[: len(LINEAR_NAMES)], parts[len(LINEAR_NAMES) :]
        if not all(isinstance(each, LINEARS) for each in linears):
            return None
        if not all(isinstance(each, nn.Conv1d) and each.bias is not None for each in convolutions):
            return None
        if norm is None or not isinstance(getattr(norm, KEY_FACTORS, None), nn.Parameter):
            return None
        query, key, value, delayed = linears
        channels, of_heads = convolutions
        return cls(module, query, key, value, delayed, channels, of_heads, norm)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that are known, but for those of projections."""
        for each in (self.channels, self.of_heads, self.norm):
            yield from each.parameters()

    @property
    def head_norm(self) -> Norm:
        """The norm of each head, whose squares have a least sum instead of an epsilon."""
        size = self.of_heads.in_channels // self.of_heads.groups
        return Norm(self.norm, torch.ones(size), torch.finfo(torch.float32).eps ** 2 / size)

    @property
    def key_factors(self) -> torch.Tensor:
        """The factors of each number of the keys."""
        factors: torch.Tensor = getattr(self.norm, KEY_FACTORS).detach()
        return factors.repeat_interleave(len(self.head_norm.weight))

    @property
    def delay(self) -> Delay:
        """The convolution of values."""
        is_delayed = torch.arange(self.value.out_features + self.delayed.out_features) >= self.value.out_features
        biases = [each.bias.detach().float().cpu() for each in (self.value, self.delayed) if each.bias is not None]
        return Delay(self.module, torch.stack([is_delayed, ~is_delayed]).float(), torch.cat(biases) if biases else None)


class NativeHeadMixing:
    """The mixing of heads as the native kernels run it, with the last inputs of each sequence as its state.

    Args:
        parts: of the family's module.
        number: among the convolutions of the layer.

    Raises:
        UnsupportedLayerError: its convolutions are of another kind.
    """

    def __init__(self, parts: HeadMixingParts, number: int):
        self.parts, self._kept = parts, KeptTensors()
        channels, of_heads = parts.channels, parts.of_heads
        count, num_heads = channels.in_channels, of_heads.groups
        dim, width, taps = count // num_heads, channels.kernel_size[0], of_heads.kernel_size[0]
        settings = [(each.stride, each.padding, each.dilation) for each in (channels, of_heads)]
        if channels.groups != count or of_heads.in_channels != count or {*settings} != {((1,), (0,), (1,))}:
            raise UnsupportedLayerError("its queries and keys are mixed by convolutions of another kind")
        self._key = StateKey(int(parts.module.layer_idx), CONV, number)
        self._shape = StateShape((width - 1 + taps - 1, count), torch.float32)
        weight = of_heads.weight.detach()  # (channels, dim, taps)
        weight = weight.transpose(1, 2).flatten(1).to(weight.dtype if weight.dtype in PLAIN else torch.float32)
        kv_heads = parts.key.out_features // dim
        self.spec = HeadMixing(
            channels=Convolution(
                weight=self._kept.keep(channels.weight.squeeze(1).T),
                bias=self._kept.keep(channels.bias),
                states=self._kept.keep(torch.zeros(1, *self._shape.shape)),  # of the only sequence, in trials
                width=width,
                channels=count,
                dilation=1,
            ),
            of_heads=self._plain(weight),
            bias=self._kept.keep(of_heads.bias),
            heads=num_heads - kv_heads,
            kv_heads=kv_heads,
            taps=taps,
        )

    def _plain(self, weight: torch.Tensor) -> Matrix:
        weight = weight.contiguous()
        self._kept.hold(weight)
        matrix = plain_matrix(weight)
        assert matrix is not None
        return matrix

    @property
    def address(self) -> int:
        return addressof(self.spec)

    @property
    def states(self) -> StateShapes:
        """The state of one sequence."""
        return {self._key: self._shape}

    def bind(self, states: StateCache | None) -> None:
        """Keep the states of sequences in this memory."""
        assert states is not None
        self.spec.channels.states = states.tensor(self._key).data_ptr()

    def projection(self) -> tuple[Matrix, int | None]:
        """Return the weights of queries and of keys as one matrix, and the address of their biases, for trials."""
        linears: list[Any] = [self.parts.query, self.parts.key]
        biases = [each.bias for each in linears if each.bias is not None]
        weight = torch.cat([each.weight for each in linears]).detach()
        return self._plain(weight), self._kept.keep(torch.cat(biases)) if biases else None
