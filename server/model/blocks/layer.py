"""NativeLayer: one decoder layer as the native kernels run it."""

from __future__ import annotations

from collections.abc import Mapping
from ctypes import addressof
from typing import Any

from server.kernels.native.structures.adapters import LoraPlace
from server.kernels.native.structures.layers import LayerSpec, Mixture, Mlp, NormGate, StreamMix
from server.kernels.native.structures.layers import Norm as NormSpec
from server.kernels.native.structures.mixers import MixerKind
from server.model.attention.kv_cache import KVCache
from server.model.blocks.adapter_places import NativeTarget
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.kept_tensors import KeptTensors
from server.model.blocks.linears import Linear, matrix_of
from server.model.blocks.mixer import Mixer
from server.model.blocks.ngrams import NativeNgrams, NgramParts
from server.model.blocks.norms import Norm
from server.model.blocks.residual_convolution import NativeConvolution, ResidualConvolution
from server.model.blocks.residual_gates import ResidualGateParts
from server.model.blocks.streams import StreamMixParts
from server.model.experts.expert_layer import ExpertLayer
from server.model.experts.router import RouterWeights
from server.model.recurrent.states import StateCache, StateShapes


class NativeLayer:
    """One decoder layer as the native kernels run it.

    Args:
        index: of the layer.
        experts: those of the layer; None if it has none.
    """

    def __init__(self, index: int, experts: ExpertLayer | None):
        self.spec = LayerSpec(index=index, mixer_kind=MixerKind.EXTERNAL)  # refers to the two parts
        self.experts = experts
        self.feed_forward: Mixture | Mlp | None = None
        self.router: RouterWeights | None = None
        self.router_mlp: Any = None  # parts of what makes the rows that the router's weights take, if they take others
        self._mixer: Mixer | None = None
        self.ngrams: NativeNgrams | None = None  # added before the mixer
        self._gates: list[NormGate] = []
        self._mixes: list[StreamMix] = []
        self._convolutions: list[NativeConvolution] = []
        self.kept = KeptTensors()  # whose memory the spec refers to
        self._linears: dict[Any, NativeTarget] = {}

    @property
    def mixer(self) -> Mixer:
        assert self._mixer is not None
        return self._mixer

    @mixer.setter
    def mixer(self, mixer: Mixer) -> None:
        self._mixer = mixer
        self.spec.mixer, self.spec.mixer_kind = mixer.address, mixer.kind

    @property
    def linears(self) -> Mapping[Any, NativeTarget]:
        """The places that adapters may add to, by module."""
        return self._linears | self.mixer.linears

    @property
    def states(self) -> StateShapes:
        """The states of one sequence."""
        own = {key: shape for each in self._convolutions for key, shape in each.states.items()}
        of_ngrams = {} if self.ngrams is None else self.ngrams.states
        return {**self.mixer.states, **of_ngrams, **own}

    def states_after(self, convolution: int) -> StateShapes:
        """Return the states of one sequence that one of the layer's convolutions of results keeps.

        Args:
            convolution: its number among the convolutions of the layer.
        """
        found = [each.states for each in self._convolutions if each.number == convolution]
        return {key: shape for states in found for key, shape in states.items()}

    def bind(self, kv_cache: KVCache, states: StateCache | None) -> None:
        """Set the addresses of keys, values and states in the specs of the layer's parts."""
        self.mixer.bind(kv_cache, states)
        if self.ngrams is not None:
            self.ngrams.bind(states)
        for convolution in self._convolutions:
            convolution.bind(states)

    @property
    def mixture(self) -> Mixture:
        """The experts and their router, of a layer that has some."""
        assert isinstance(self.feed_forward, Mixture)
        return self.feed_forward

    def norm(self, norm: Norm | None, *, can_be_gated: bool = False) -> NormSpec:
        """Describe a norm to the kernels, but for gates; None leaves rows as they are."""
        if norm is None:
            return NormSpec()
        if norm.gates is not None and not can_be_gated:
            raise UnsupportedLayerError("it has a gated norm in another place than before a mixer or experts")
        return self.kept.norm(norm)

    def gates(self, norm: Norm | None, place: int) -> int | None:
        """Return the address of what describes the gates of a norm; None if it has none.

        Args:
            place: that adapters add to.
        """
        if norm is None or norm.gates is None:
            return None
        for number, linear in enumerate((norm.gates.down, norm.gates.up)):
            self.add_target(linear, place + number)
        self._gates.append(NormGate(matrix_of(norm.gates.down), matrix_of(norm.gates.up)))
        return addressof(self._gates[-1])

    def add_ngrams(self, parts: NgramParts | None) -> None:
        """Add embeddings of n-grams to the residual stream before the mixer; None adds nothing."""
        if parts is not None:
            self.ngrams = NativeNgrams(parts)
            self.spec.ngrams = self.ngrams.address
            self.add_target(parts.key, LoraPlace.NGRAM_KEY)
            self.add_target(parts.value, LoraPlace.NGRAM_VALUE)

    def stream_mix(self, parts: StreamMixParts, place: int) -> int:
        """Return the address of what describes how the rows of the residual stream are mixed.

        Args:
            place: of gates, that adapters add to.
        """
        for each, linear in parts.places(place).items():
            self.add_target(linear, each)
        self._mixes.append(parts.build(self.kept))
        return addressof(self._mixes[-1])

    def convolution(self, parts: ResidualConvolution | None, number: int) -> int | None:
        """Return the address of what describes a convolution of results; None if there is none.

        Args:
            number: among the convolutions of the layer.
        """
        if parts is None:
            return None
        self._convolutions.append(NativeConvolution(parts, number))
        return self._convolutions[-1].address

    def residual_gate(self, parts: ResidualGateParts | None) -> int | None:
        """Return the address of what describes a gated sum; None for a plain one."""
        return None if parts is None else addressof(parts.build(self.kept))

    def add_target(self, linear: Linear, place: int, offset: int = 0) -> None:
        """Make a linear layer known as a place that adapters may add to (``NativeTarget``)."""
        self.add_place(linear, place, linear.in_features, linear.out_features, offset)

    def add_place(self, module: Any, place: int, inputs: int, outputs: int, offset: int = 0) -> None:
        """Make a module known that computes a linear layer, such as a router."""
        self._linears[module] = NativeTarget(self.spec.index, place, inputs, outputs, offset)
