"""Finds the place of each norm of a layer, by the rows that its modules take and return in a call."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from server.model.blocks.capture import ChildCall, LayerCapture
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.ngrams import NgramParts
from server.model.blocks.norms import Norm, norm_of
from server.model.blocks.residual_convolution import ResidualConvolution
from server.model.blocks.residual_gates import ResidualGateParts
from server.model.blocks.streams import find_streams
from server.model.recognition.residuals import ResidualRows

OTHER_ROWS = "key_hidden_states", "value_hidden_states"  # arguments of a mixer


@dataclass(frozen=True)
class Places:
    """The calls of a layer's feed-forward part, if it has one, and the norms around them."""

    experts: ChildCall | None  # of the experts, or of a module that holds them
    dense: ChildCall | None  # of an MLP that stands alone or beside the experts
    router: ChildCall | None  # of a router beside the experts
    input_norm: Norm | None
    dense_input_norm: Norm | None  # if it is not ``input_norm``
    experts_norm: Norm | None
    dense_norm: Norm | None
    output_norm: Norm | None
    output_convolution: ResidualConvolution | None  # of the results
    residual_gate: ResidualGateParts | None  # of their sum with the hidden states
    is_parallel: bool

    @property
    def block(self) -> nn.Module | None:
        """The module that chooses experts, or else the one of the MLP; None if there is neither."""
        call = self.router or self.experts or self.dense
        return None if call is None else call.module


class LayerCalls:
    """The calls of a layer's children.

    Args:
        captured: a call of the layer.
        mixer: its child that mixes tokens; None if it has none.

    Raises:
        UnsupportedLayerError: the layer does not call its mixer.
    """

    def __init__(self, captured: LayerCapture, mixer: nn.Module | None):
        found = next((each for each in captured.calls if each.module is mixer), None)
        if found is None and mixer is not None:
            raise UnsupportedLayerError("a layer does not call its mixer")
        self._mixer = found
        self._norms: list[tuple[ChildCall, Norm]] = []
        self._others: list[ChildCall] = []
        self._convolutions: list[tuple[ChildCall, ResidualConvolution]] = []
        self._gates: list[tuple[ChildCall, ResidualGateParts]] = []
        streams = {parts.module for parts in find_streams(captured)}
        self.ngrams: list[NgramParts] = []  # what is added to the residual stream before the mixer
        for each in captured.calls:
            if each.module in streams:
                continue
            if each is captured.calls[0] and (ngrams := NgramParts.find(each.module)) is not None:
                self.ngrams.append(ngrams)
                continue
            norm = norm_of(each.module, each.given.shape[-1]) if each.module is not mixer else None
            if norm is not None and len(norm.weight) != captured.hidden_size:
                raise UnsupportedLayerError("its norms have another size than its hidden states")
            if norm is not None:
                self._norms.append((each, norm))
            elif each.module is not mixer:
                self._add_other(each)
        self.input_norm = None if found is None else self._before(found)
        self.mixer_norm = None if found is None else self._after(found)
        self.mixer_convolution = None if found is None else self._convolution_of(found)
        self.other_norms = [] if found is None else self._of_other_rows(found)
        self.mixer_residual_gate = None if found is None else self._gate_of(found)

    def _add_other(self, call: ChildCall) -> None:
        convolution, gate = ResidualConvolution.find(call.module), ResidualGateParts.find(call.module)
        if convolution is not None:
            self._convolutions.append((call, convolution))
        elif gate is not None:
            self._gates.append((call, gate))
        else:
            self._others.append(call)

    @property
    def norms(self) -> list[Norm]:
        """The norms among the layer's children."""
        return [norm for _, norm in self._norms]

    @property
    def convolutions(self) -> list[ResidualConvolution]:
        """The convolutions among the layer's children."""
        return [convolution for _, convolution in self._convolutions]

    @property
    def residual_gates(self) -> list[ResidualGateParts]:
        """The gates of sums among the layer's children."""
        return [gate for _, gate in self._gates]

    def place_parts(self, experts: nn.Module | None) -> Places:
        """Return the places of the other parts.

        Args:
            experts: somewhere in the layer; None if it has none.

        Raises:
            UnsupportedLayerError: there are more than experts with their router and an MLP.
        """
        holder = next(
            (each for each in self._others if any(module is experts for module in each.module.modules())), None
        )
        rest = [each for each in self._others if each is not holder]
        router = None
        if holder is not None and holder.module is experts:
            router = next((each for each in rest if each.output.shape[-1] != each.given.shape[-1]), None)
            rest = [each for each in rest if each is not router]
        if len(rest) > 1:
            names = ", ".join(sorted({type(each.module).__name__ for each in rest}))
            raise UnsupportedLayerError(f"its layers have several parts besides a mixer, norms and experts: {names}")
        if not (holder or rest or self._mixer):
            raise UnsupportedLayerError("its layers have neither a mixer nor experts nor an MLP")
        dense = rest[0] if rest else None
        main = holder or dense
        input_norm = None if main is None else self._before(main)
        dense_input = None if dense is None else self._before(dense, known=input_norm)
        is_parallel = bool(main and self._mixer and self._is_same(main.given, self._mixer.given))
        parts = [each for each in (holder, dense) if each is not None]
        norms = [self._after(each) for each in parts]
        known = [self.input_norm, self.mixer_norm, input_norm, dense_input, *norms, *self.other_norms]
        left = [norm for norm in self.norms if norm not in known]
        output_norm = left[0] if left else norms[0] if len(parts) == 1 else None
        if len(left) > 1 or (left and len(parts) <= 1) or (is_parallel and input_norm is not self.input_norm):
            raise UnsupportedLayerError(f"its layers have {len(self._norms)} norms, some of them in unknown places")
        if len(parts) == 1:
            norms = [None]
        convolution = self._convolution_of(parts[0]) if len(parts) == 1 else None
        if len(self._convolutions) > sum(each is not None for each in (self.mixer_convolution, convolution)):
            raise UnsupportedLayerError("its layers have convolutions in unknown places")
        gate = self._gate_of(parts[0]) if len(parts) == 1 else None
        if len(self._gates) > sum(each is not None for each in (self.mixer_residual_gate, gate)):
            raise UnsupportedLayerError("its layers have gated sums in unknown places")
        by_part = dict(zip(map(id, parts), norms, strict=True))
        return Places(
            experts=holder,
            dense=dense,
            router=router,
            input_norm=None if is_parallel else input_norm,
            dense_input_norm=None if dense_input is input_norm else dense_input,
            experts_norm=by_part.get(id(holder)),
            dense_norm=by_part.get(id(dense)),
            output_norm=output_norm,
            output_convolution=convolution,
            residual_gate=gate,
            is_parallel=is_parallel,
        )

    def residual_rows(self, inner: Norm | None) -> ResidualRows | None:
        """Return what shows to what a layer adds results; None if it has no norms before its mixer and its other part.

        Args:
            inner: the norm before the feed-forward part.
        """
        has_norms = self.input_norm is not None and self.mixer_norm is None and inner is not None
        if self._gates or self._mixer is None or not has_norms:
            return None
        call = next(each for each, norm in self._norms if norm is inner)
        mixed = next((each.output for each, own in self._convolutions if own is self.mixer_convolution), None)
        mixed = self._mixer.output if mixed is None else mixed
        return ResidualRows(self._mixer.given, mixed, call.given, call.output)

    def _before(self, call: ChildCall, known: Norm | None = None) -> Norm | None:
        """Return the norm whose output a module takes; of several with the same output, another than the known one."""
        found = [norm for each, norm in self._norms if self._is_same(each.output, call.given)]
        return next((norm for norm in found if norm is not known), found[0] if found else None)

    def _of_other_rows(self, call: ChildCall) -> list[Norm]:
        """Return the norms of the rows that a mixer takes for keys and for values, if these are other ones."""
        rows = [
            given.reshape(call.given.shape) for name in OTHER_ROWS if (given := call.call.kwargs.get(name)) is not None
        ]
        return [norm for given in rows for each, norm in self._norms if self._is_same(each.output, given)]

    def _after(self, call: ChildCall) -> Norm | None:
        """Return the norm that takes a module's output."""
        return next((norm for each, norm in self._norms if self._is_same(each.given, call.output)), None)

    def _convolution_of(self, call: ChildCall) -> ResidualConvolution | None:
        """Return the convolution that takes a module's output."""
        return next((found for each, found in self._convolutions if self._is_same(each.given, call.output)), None)

    def _gate_of(self, call: ChildCall) -> ResidualGateParts | None:
        """Return the gate of the sum with a module's output, or with that of the norm after it."""
        results = next((each.output for each, _ in self._norms if self._is_same(each.given, call.output)), call.output)
        for each, gate in self._gates:
            added = [*each.call.args, *each.call.kwargs.values()][gate.results]
            if self._is_same(added.reshape(results.shape), results):
                return gate
        return None

    @staticmethod
    def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
        return one.shape == other.shape and torch.equal(one, other)
