"""The interface of a kind of mixer: the part of a layer in which tokens see others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from ctypes import Structure, addressof
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import nn

from server.kernels.native.structures.adapters import LoraPlace
from server.kernels.native.structures.mixers import MixerKind
from server.model.attention.kv_cache import KVCache, KVShape
from server.model.blocks.adapter_places import NativeTarget
from server.model.blocks.capture import LayerCapture
from server.model.blocks.cuda import CudaMixer, CudaPlace
from server.model.blocks.declaration import MixerDeclaration, RotaryDeclaration
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.kept_tensors import KeptTensors
from server.model.blocks.linears import Linear
from server.model.blocks.workspace import Positions
from server.model.program import Target
from server.model.recurrent.states import StateCache, StateShapes, StepStates


@dataclass(frozen=True)
class LayerPlace:
    """A layer in its model, for the kinds of its parts."""

    index: int
    rotary: Any  # the model's module that computes cosines and sines; None if it has none
    dtype: torch.dtype  # of the model


class MixerParts(ABC):
    """The parts of a family's module that one kind of mixer takes, found by structure."""

    module: Any
    declares: ClassVar[type[MixerDeclaration]]  # what declarations of this kind are
    keeps_state: ClassVar[bool] = False  # modules of this kind read and write recurrent states

    @classmethod
    @abstractmethod
    def find(cls, module: nn.Module, *, keeps_state: bool) -> Self | None:
        """Return the parts of a child of a layer; None if it is another kind.

        Args:
            module: the child.
            keeps_state: whether it reads and writes recurrent states.
        """

    @abstractmethod
    def parameters(self) -> Iterable[nn.Parameter]:
        """Return the parameters that the kind knows; a module with others is of another kind."""

    def declare(self, captured: LayerCapture, name: str, place: LayerPlace) -> MixerDeclaration:
        """Return what a call of the layer shows, but for what only ``Mixer.fit`` finds.

        Args:
            captured: the call.
            name: of the module in the layer.
            place: of the layer.

        Raises:
            UnsupportedLayerError: it computes something else.
        """
        del captured, place
        return self.declares(name)

    @abstractmethod
    def build(self, declared: Any, place: LayerPlace) -> Mixer:
        """Return the mixer.

        Args:
            declared: of the kind's type.
            place: of the layer.

        Raises:
            UnsupportedLayerError: it computes something else.
        """

    def for_cuda(self, declared: Any, place: CudaPlace) -> CudaMixer:
        """Return what Triton's kernels run in the place of the module; nothing by default.

        Args:
            declared: of the kind's type.
            place: of the layer.

        Raises:
            UnsupportedLayerError: they do not run it.
        """
        del place
        raise UnsupportedLayerError(f"no kernel has a {type(declared).__name__}")


@dataclass(frozen=True)
class MixerTrial:
    """A trial of the mixer of one layer, on the tokens of its capture."""

    captured: LayerCapture
    run: Callable[[Mixer], None]  # runs the layer with a mixer in the place of its own, prepared by ``for_trial``
    positions: Positions  # rotary, of the step's call
    error: Callable[[Mixer], float]  # the same, and returns the relative error of what the layer adds
    num_tokens: int
    tolerance: float  # relative error


class MixerStep:
    """The arguments of the mixers of one step that run outside of the kernels, besides their rows.

    Args:
        rotary: the model's module that computes cosines and sines; None if it has none.
        positions: of the rows.
        dtype: of the modules.
        states: of recurrent layers.
    """

    def __init__(self, rotary: Any, positions: Sequence[int], dtype: torch.dtype, states: StepStates | None):
        self._rotary, self._positions, self._dtype, self.states = rotary, positions, dtype, states

    @cached_property
    def positions(self) -> torch.Tensor:
        """Positions of the rows, ``(1, rows)``."""
        return torch.tensor([self._positions])

    @cached_property
    def angles(self) -> Any:
        """Cosines and sines, as the model passes them to its layers."""
        return self._rotary(torch.empty((1, 1, 1), dtype=self._dtype), self.positions)


@dataclass(frozen=True)
class ChosenKeys:
    """The keys that each token of a layer attends to, instead of all that it sees."""

    top_k: int  # at most
    are_own: bool  # the layer chooses them; otherwise they are those of the last layer before it that chose


class Mixer(ABC):
    """The mixer of one layer.

    Args:
        module: the family's own.
        index: of the layer among an adapter's layers.
        spec: the kind's structure, which the kernels read; None for one that runs outside of them.
    """

    kind: MixerKind
    target: ClassVar[Target] = Target.NATIVE

    def __init__(self, module: Any, index: int, spec: Structure | None):
        self.module, self.index, self._spec = module, index, spec
        self.kept = KeptTensors()  # whose memory the spec refers to
        self.linears: dict[Any, NativeTarget] = {}  # places that adapters may add to, by module

    @property
    def name(self) -> str:
        """The name of the mixer in logs."""
        return type(self.module).__name__

    @property
    def address(self) -> int | None:
        """The address of the kind's structure."""
        return None if self._spec is None else addressof(self._spec)

    @property
    def states(self) -> StateShapes:
        """The states of one sequence; none by default."""
        return {}

    @property
    def attention_layer(self) -> int | None:
        """The layer's number in the KV cache; None if it has no keys there."""
        return None

    @property
    def kept_of_tokens(self) -> KVShape | None:
        """The numbers that it keeps of a token in the KV cache; None if a first pass of the modules shows them."""
        return None

    @property
    def chosen_keys(self) -> ChosenKeys | None:
        """The keys that an indexer chooses; None if tokens attend to all that they see."""
        return None

    @property
    def reads_query_scales(self) -> bool:
        """True if the kernels multiply its queries by the step's factors of their positions."""
        return False

    def query_scale(self, position: int) -> float:
        """Return the factor of the queries at a position; 1 by default."""
        del position
        return 1.0

    def query_scales(self, positions: Sequence[int]) -> torch.Tensor:
        """Return the factors of the queries at positions, ``(1 or heads, positions)``."""
        return torch.tensor([[self.query_scale(position) for position in positions]])

    def fit(self, trial: MixerTrial) -> None:  # noqa: B027  a kind that shows all by its structure has nothing to find
        """Find what the structure does not show, by trials.

        Raises:
            UnsupportedLayerError: it computes something else.
        """

    def declare(self, declared: Any) -> MixerDeclaration:
        """Return what it was built from, with what ``fit`` found."""
        found: MixerDeclaration = declared
        return found

    @abstractmethod
    def for_trial(self, captured: LayerCapture, num_tokens: int) -> Mixer:
        """Return a copy that is bound to memory of its own, for one sequence in a trial."""

    def bind(self, kv_cache: KVCache, states: StateCache | None) -> None:  # noqa: B027
        """Set the addresses of its memory in the spec; nothing by default."""

    def mix_outside(self, normed: torch.Tensor, step: MixerStep | None) -> torch.Tensor | None:
        """Return what it adds to the hidden states, ``(rows, hidden)``; None if the kernels run it.

        Args:
            normed: float32 ``(rows, hidden)``.
            step: None in a trial.
        """
        del normed, step
        return None

    def keep(self, tensor: torch.Tensor | None) -> int | None:
        """Keep a float32 copy of a tensor, and return its address."""
        return self.kept.keep(tensor)

    def add_target(self, linear: Linear, number: int, offset: int = 0, input_scale: float = 1.0) -> None:
        """Make a linear layer known as a place that adapters may add to.

        Args:
            number: of the kind's matrices.
            offset: of its outputs, for one of several that are computed together.
            input_scale: it takes the kernels' inputs times this.
        """
        place, sizes = LoraPlace.MIXER + number, (linear.in_features, linear.out_features)
        self.linears[linear] = NativeTarget(self.index, place, *sizes, offset, input_scale=input_scale)


class RotaryMixer(Mixer):
    """A mixer that may rotate queries and keys by their positions."""

    @property
    @abstractmethod
    def most_rotated(self) -> int:
        """The most numbers of a head that may be rotated."""

    def use_rope(self, declared: RotaryDeclaration, rotary_dim: int) -> None:
        """Rotate by one of the model's kinds of positions.

        Args:
            declared: with its number.
            rotary_dim: the numbers of a head that it rotates.
        """
        assert self._spec is not None
        self._spec.rope, self._spec.rope_kind, self._spec.rotary_dim = declared.rotary, declared.rope, rotary_dim

    @abstractmethod
    def rotation_error(self, trial: MixerTrial) -> tuple[float, bool]:
        """Return the least error of keys with the positions of a trial, and whether these are rotated for it."""


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the norm of a difference, relative to that of the wanted values."""
    return float((found - wanted).norm() / wanted.norm().clamp_min(1e-20))
