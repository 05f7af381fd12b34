"""The parts of a decoder layer, as the native kernels run it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional as F

from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.linears import LINEARS, Linear
from server.model.blocks.ngrams import NgramParts
from server.model.blocks.norms import Norm, norm_of
from server.model.blocks.residual_convolution import ResidualConvolution
from server.model.blocks.residual_gates import ResidualGateParts
from server.model.blocks.streams import StreamMixParts
from server.model.native_layers.shared_experts import SharedExperts

DENSE_NAMES = (  # gate, up and down; where there are two, the first may be both gate and up
    ("gate_proj", "up_proj", "down_proj"),
    ("w1", "w3", "w2"),
    ("input_linear", "output_linear"),
    ("gate_up_proj", "down_proj"),
    ("up_proj", "down_proj"),
)
ACTIVATIONS = ("act_fn", "activation_fn", "activation")
SCALE = "layer_scalar"
FACTOR = "global_scale"  # parameter: factor of an MLP's result


@dataclass(frozen=True)
class Dense:
    """An MLP that every token goes to."""

    module: Any
    gate: Linear  # or both gate and up, or the first of one without a gate
    up: Linear | None
    down: Linear
    act_fn: Any
    weighting: Linear | None = None  # linear layer whose sigmoid multiplies the result
    input_norm: Norm | None = None  # of the hidden states, if it is not the layer's
    output_norm: Norm | None = None
    scale: float = 1.0  # factor of the result
    factor: nn.Parameter | None = None  # the module's own part of it

    @property
    def has_gate(self) -> bool:
        return self.up is not None or self.gate.out_features != self.down.in_features


@dataclass(frozen=True)
class Projections:
    """The linear layers around experts whose rows have another width than the hidden states."""

    input: Linear
    output: Linear  # of their weighted sum
    norm: Norm | None  # of the results of ``input``

    @classmethod
    def of(cls, input_: Linear, output: Linear, norm: nn.Module | None) -> Self:
        """Return the parts of these modules.

        Raises:
            UnsupportedLayerError: the layers have biases, or the norm is none.
        """
        if input_.bias is not None or output.bias is not None:
            raise UnsupportedLayerError("the projections around its experts have biases")
        found = None if norm is None else norm_of(norm, input_.out_features)
        if norm is not None and found is None:
            raise UnsupportedLayerError("the rows of its experts are normed in another way")
        return cls(input_, output, found)

    def parameters(self) -> Iterator[nn.Parameter]:
        for module in (self.input, self.output, None if self.norm is None else self.norm.module):
            if module is not None:
                yield from module.parameters()


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of a decoder layer but for its mixer; ``experts`` and ``dense`` may be either, both or none."""

    input_norm: Norm | None
    mixer_norm: Norm | None  # of the mixer's results
    inner_norm: Norm | None
    output_norm: Norm | None  # of the feed-forward part's results
    is_parallel: bool  # the feed-forward part takes what the mixer takes
    experts: Any
    experts_norm: Norm | None  # of the experts' weighted sum
    router: Any  # the module that owns the router's parameters
    dense: Dense | None
    scale: torch.Tensor | None  # of the hidden states after the layer
    projections: Projections | None = None  # around the experts
    shared: SharedExperts | None = None  # experts beside the others that the router weights, too
    mixer_residual_gate: ResidualGateParts | None = None  # of the sum with the mixer's results
    inner_residual_gate: ResidualGateParts | None = None  # of that with those of the feed-forward part
    mixer_convolution: ResidualConvolution | None = None  # of the mixer's results
    output_convolution: ResidualConvolution | None = None  # of those of the feed-forward part
    streams: Sequence[StreamMixParts] = ()  # what mixes the rows of the residual stream, where it has several a token
    other_norms: Sequence[Norm] = ()  # of the rows that the mixer takes for keys and for values, if it takes such
    ngrams: NgramParts | None = None  # what is added to these before the mixer


def dense_of(module: Any) -> Dense | None:
    """Return the parts of an MLP, without what its layer has around it; None if the module is something else."""
    linears = mlp_linears(module)
    if not linears:
        return None
    gate, *up, down = linears
    # A module without an activation of its own calls a function; the trial of the layer shows if it is another one.
    act_fn = next((getattr(module, name) for name in ACTIVATIONS if hasattr(module, name)), F.silu)
    return Dense(
        module,
        gate,
        up[0] if up else None,
        down,
        act_fn,
        scale=factor_of(module),
        factor=getattr(module, FACTOR, None),
    )


def output_scale_of(layer: nn.Module) -> torch.Tensor | None:
    """Return the factor of the hidden states after a layer, which its checkpoint has; None if it has none."""
    return next((value.detach() for name, value in layer.named_buffers(recurse=False) if name == SCALE), None)


def factor_of(module: Any) -> float:
    """Return the parameter by which a module multiplies its results; 1 if it has none."""
    return float(getattr(module, FACTOR, 1.0))


def mlp_linears(module: nn.Module) -> list[Linear]:
    """Return the layers of an MLP: gate, up and down, the first two as one, or up and down; empty if it is none."""
    for names in DENSE_NAMES:
        linears = [linear for name in names if isinstance(linear := getattr(module, name, None), LINEARS)]
        if len(linears) == len(names):
            return linears
    return []
