"""RecurrentMixer: a mixer whose memory of a sequence is a state of constant size, in a slot of the sequence."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from ctypes import Structure
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import nn

from server.kernels.native.structures.matrices import Size
from server.kernels.native.structures.mixers import Convolution, MixerKind, Projections
from server.model.attention.kv_cache import KVCache
from server.model.blocks.capture import LayerCapture
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.linears import Linear, matrix_of
from server.model.blocks.mixer import Mixer, MixerParts
from server.model.blocks.norms import EPSILONS
from server.model.recurrent.states import StateCache, StateKey, StateShape, StateShapes

Shapes = Mapping[str, tuple[int, ...]]  # of one sequence's states, by kind
CONV, RECURRENT = "conv", "recurrent"  # kinds of ``StateKey``
Spec = TypeVar("Spec", bound=Structure)
Parts = TypeVar("Parts", bound=MixerParts)


class RecurrentMixer(Mixer, Generic[Spec, Parts]):
    """A mixer with states of its sequences, float32, which the kernels read from one row and write to another.

    Args:
        parts: of the family's module.
        index: of the layer.

    Raises:
        UnsupportedLayerError: the module computes something else.
    """

    spec_type: type[Spec]  # of the kind

    def __init__(self, parts: Parts, index: int):
        self.spec = self.spec_type()
        super().__init__(parts.module, index, self.spec)
        self.describe(parts)

    @abstractmethod
    def describe(self, parts: Parts) -> None:
        """Fill the spec.

        Raises:
            UnsupportedLayerError: the module computes something else.
        """

    @property
    @abstractmethod
    def shapes(self) -> Shapes:
        """The shapes of a sequence's states."""

    @staticmethod
    def place_states(spec: Any, addresses: Mapping[str, int]) -> None:
        """Set the addresses of states in a spec.

        Args:
            spec: the structure of a kind of mixer.
            addresses: of the first row, by kind of state.
        """
        for kind, address in addresses.items():
            (spec.convolution if kind == CONV else spec).states = address

    @property
    def states(self) -> StateShapes:
        return {self._key(kind): StateShape(shape, torch.float32) for kind, shape in self.shapes.items()}

    def for_trial(self, captured: LayerCapture, num_tokens: int) -> Mixer:
        del captured, num_tokens
        assert self._spec is not None
        spec = type(self._spec).from_buffer_copy(self._spec)
        trial = _TrialMixer(self.module, self.index, spec, self.kind)
        states = {kind: torch.zeros((1, *shape), dtype=torch.float32) for kind, shape in self.shapes.items()}
        self.place_states(spec, {kind: trial.keep(state) or 0 for kind, state in states.items()})
        return trial

    def bind(self, kv_cache: KVCache, states: StateCache | None) -> None:
        del kv_cache
        assert states is not None
        addresses = {kind: states.tensor(self._key(kind)).data_ptr() for kind in self.shapes}
        self.place_states(self._spec, addresses)

    def set_projections(
        self, spec: Projections, inputs: Sequence[Linear], output: Linear, places: torch.Tensor | None = None
    ) -> None:
        """Describe the linear layers before and after the recurrence.

        Args:
            spec: the description.
            inputs: those of the normed hidden states.
            output: the last one.
            places: where a token's row has each output of all inputs; None if they are in order.
        """
        for number, linear in enumerate(inputs):
            spec.inputs[number] = matrix_of(linear)
            spec.biases[number] = self.keep(linear.bias)
            self.add_target(linear, number)
        spec.output, spec.output_bias = matrix_of(output, takes_order=True), self.keep(output.bias)
        spec.num_inputs = len(inputs)
        self.add_target(output, len(inputs))
        if places is not None:
            spec.places = self.kept.hold(places.to(torch.int32).contiguous())

    def set_seconds(self, spec: Projections, seconds: Mapping[int, Linear]) -> None:
        """Describe linear layers that follow some of the first ones, after these were described.

        Args:
            spec: the description.
            seconds: the layers by the number of the first one.

        Raises:
            UnsupportedLayerError: one has a bias.
        """
        for place, (number, linear) in enumerate(seconds.items(), spec.num_inputs + 1):
            if linear.bias is not None:
                raise UnsupportedLayerError("a second projection has a bias")
            spec.seconds[number] = matrix_of(linear)
            self.add_target(linear, place)

    def set_convolution(self, spec: Convolution, module: nn.Conv1d, *, has_silu: bool) -> None:
        """Describe a causal convolution of each channel.

        Raises:
            UnsupportedLayerError: the module is another convolution.
        """
        channels, width = module.out_channels, module.kernel_size[0]
        is_causal = module.groups == channels == module.in_channels and module.padding == (width - 1,)
        if not is_causal or module.stride != (1,) or module.dilation != (1,):
            raise UnsupportedLayerError("its convolution is not a causal one of each channel")
        spec.weight = self.keep(module.weight.squeeze(1).T)
        spec.bias = self.keep(module.bias)
        spec.width, spec.channels, spec.has_silu, spec.dilation = width, channels, int(has_silu), 1

    def _key(self, kind: str) -> StateKey:
        return StateKey(int(self.module.layer_idx), kind)


class _TrialMixer(Mixer):
    def __init__(self, module: Any, index: int, spec: Structure, kind: MixerKind):
        super().__init__(module, index, spec)
        self.kind = kind

    def for_trial(self, captured: LayerCapture, num_tokens: int) -> Mixer:
        del captured, num_tokens
        return self


def padded(columns: int) -> int:
    """Return the columns of a recurrent state as the kernels store it."""
    return -(-columns // Size.STATE_LANES) * Size.STATE_LANES


def check_sizes(sizes: Mapping[torch.Tensor, int]) -> None:
    """Raise ``UnsupportedLayerError`` if tensors have other numbers than these."""
    if any(tensor.numel() != size for tensor, size in sizes.items()):
        raise UnsupportedLayerError("the sizes of its decays, its norm and its heads differ")


def epsilon_of(norm: nn.Module) -> float:
    """Return the epsilon of a norm.

    Raises:
        UnsupportedLayerError: it has none.
    """
    for name in EPSILONS:
        if isinstance(epsilon := getattr(norm, name, None), float):
            return epsilon
    raise UnsupportedLayerError(f"its {type(norm).__name__} has no epsilon")


def conv_shape(spec: Convolution) -> tuple[int, ...]:
    """Return the shape of the state of a convolution."""
    return (spec.width - 1, spec.channels)


def interleaved(groups: int, sizes: Sequence[int]) -> torch.Tensor:
    """Return the place of each output of a projection that has some parts of each group, group after group.

    In the row, each part of all groups comes after the parts before it.

    Args:
        groups: how many.
        sizes: outputs of each part in one group.
    """
    starts = np.cumsum([0, *sizes]) * groups
    return torch.cat(
        [
            torch.arange(size) + int(start) + group * size
            for group in range(groups)
            for start, size in zip(starts, sizes, strict=False)
        ]
    )
