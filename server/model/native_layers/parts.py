"""Finds the parts of a decoder layer, by their names and results."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from server.model.blocks.capture import LayerCapture
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.layer_recorder import children_of
from server.model.blocks.linears import LINEARS, Linear
from server.model.blocks.mixer import MixerParts
from server.model.blocks.ngrams import NgramParts
from server.model.blocks.no_mixer.parts import NoMixerParts
from server.model.blocks.norms import Norm, norm_of
from server.model.blocks.residual_convolution import ResidualConvolution
from server.model.blocks.streams import StreamMixParts, find_streams
from server.model.blocks.table import MIXERS
from server.model.native_layers.layer_calls import LayerCalls, Places
from server.model.native_layers.residuals import ResidualRows
from server.model.native_layers.shared_experts import SharedExperts

DENSE_NAMES = (  # gate, up and down; where there are two, the first may be both gate and up
    ("gate_proj", "up_proj", "down_proj"),
    ("w1", "w3", "w2"),
    ("input_linear", "output_linear"),
    ("gate_up_proj", "down_proj"),
    ("up_proj", "down_proj"),
)
ACTIVATIONS = ("act_fn", "activation_fn", "activation")
COMBINATION = "shared_expert_combination_strategy"  # attribute: of experts and the shared one
WEIGHTING = "shared_expert_gate"
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
class ImageParts:
    """Experts that tokens of images go to instead of a layer's own, with a router of their own (ERNIE 4.5 VL)."""

    block: nn.Module
    experts: Any
    router: nn.Module  # owns the router's parameters


@dataclass(frozen=True)
class Parts:
    """The parts of a decoder layer; ``experts`` and ``dense`` may be either, both or none."""

    input_norm: Norm | None
    mixer_norm: Norm | None  # of the mixer's results
    inner_norm: Norm | None
    output_norm: Norm | None  # of the feed-forward part's results
    is_parallel: bool  # the feed-forward part takes what the mixer takes
    mixers: Sequence[MixerParts]  # of one module, as each kind that may be it; the likeliest first
    block: Any  # the MLP, with the router and the experts; or the router alone, if it is apart; None without both
    is_router_apart: bool  # it stands beside the experts
    experts: Any
    experts_norm: Norm | None  # of the experts' weighted sum
    router: Any  # the module that owns the router's parameters
    dense: Dense | None
    scale: torch.Tensor | None  # of the hidden states after the layer
    residual_rows: ResidualRows | None
    images: ImageParts | None
    shared: SharedExperts | None = None  # experts beside the others that the router weights, too
    mixer_convolution: ResidualConvolution | None = None  # of the mixer's results
    output_convolution: ResidualConvolution | None = None  # of those of the feed-forward part
    streams: Sequence[StreamMixParts] = ()  # what mixes the rows of the residual stream, where it has several a token
    ngrams: NgramParts | None = None  # what is added to these before the mixer

    @property
    def mixer_module(self) -> nn.Module | None:
        """The family's module of the mixer; None if it has none."""
        module: nn.Module | None = self.mixers[0].module
        return module


def find_parts(layer: nn.Module, captured: LayerCapture, recurrent: Collection[nn.Module] = ()) -> Parts:
    """Return the parts of a decoder layer.

    Args:
        layer: one of the model.
        captured: a call of it.
        recurrent: modules that keep states.

    Raises:
        UnsupportedLayerError: the layer has other parts.
    """
    mixers = find_mixers(layer, captured, recurrent)
    calls = LayerCalls(captured, mixers[0].module)
    found = [module for module in layer.modules() if hasattr(module, "parameter_shapes")]
    experts, others = found[0] if found else None, found[1:]
    places = calls.place_parts(experts)
    dense = _dense(places, experts)
    if experts is None and dense is None and places.dense is not None:
        raise UnsupportedLayerError("an MLP has other parts")
    block_norm = _block_norm(places, experts, captured.hidden_size)
    inside = {id(each) for each in _known([*calls.norms, *filter(None, [block_norm])], mixers[0].module, dense)}
    images = _images(places, experts, others)
    if images is not None:
        inside |= {id(value) for value in images.block.parameters()}
    shared = None
    if experts is not None and places.experts is not None:
        shared = SharedExperts.find(places.experts.module, experts)
    inside |= {id(value) for part in (shared,) if part is not None for value in part.parameters()}
    inside |= {id(value) for part in calls.convolutions for value in part.module.parameters()}
    router = None
    if places.router is not None:
        router = places.router.module
    elif experts is not None and places.experts is not None:
        block = places.experts.module
        rest = [parameter for parameter in block.parameters() if parameter.numel() and id(parameter) not in inside]
        router = _router_of(block, rest)
    if router is not None:
        inside |= {id(value) for value in router.parameters()}
    streams = find_streams(captured)
    inside |= {id(value) for parts in (*streams, *calls.ngrams) for value in parts.parameters()}
    _check_known(layer, inside)
    return Parts(
        calls.input_norm,
        calls.mixer_norm,
        places.input_norm,
        places.output_norm or block_norm,
        places.is_parallel,
        mixers,
        places.block,
        places.router is not None,
        experts,
        places.experts_norm,
        router,
        dense,
        next((value.detach() for name, value in layer.named_buffers(recurse=False) if name == SCALE), None),
        None if streams else calls.residual_rows(places.input_norm),
        images,
        shared,
        calls.mixer_convolution,
        places.output_convolution,
        streams,
        calls.ngrams[0] if calls.ngrams else None,
    )


def find_mixers(layer: nn.Module, captured: LayerCapture, recurrent: Collection[nn.Module]) -> Sequence[MixerParts]:
    """Return the parts of a layer's mixer as each kind that it may be, or none of a layer without attention or states.

    Raises:
        UnsupportedLayerError: it is of none.
    """
    unknown: UnsupportedLayerError | None = None
    for _, child in children_of(layer):
        mixers: list[MixerParts] = []
        for kind in MIXERS:
            parts = kind.find(child, keeps_state=child in recurrent)
            if parts is None:
                continue
            try:
                _check_known(child, {id(parameter) for parameter in parts.parameters()})
            except UnsupportedLayerError as error:
                unknown = error
            else:
                mixers.append(parts)
        if mixers:
            return mixers
    if captured.options is None and unknown is None and not any(module in recurrent for module in layer.modules()):
        return [NoMixerParts()]
    raise unknown or UnsupportedLayerError("the kernels have no attention of its kind")


def _check_known(module: nn.Module, known: Collection[int]) -> None:
    """Raise ``UnsupportedLayerError`` if a module has a parameter besides those known by their ids."""
    for name, value in module.named_parameters():
        if value.numel() and id(value) not in known:
            raise UnsupportedLayerError(f"its layers have an unknown parameter, {name}")


def _dense(places: Places, experts: nn.Module | None) -> Dense | None:
    """Return the MLP of a layer that every token goes to; None if it has none."""
    blocks = [place.module for place in (places.dense, places.experts) if place is not None]
    found = [
        (module, linears)
        for block in blocks
        for module in block.modules()
        if module is not experts and (linears := _mlp_linears(module))
    ]
    if not found:
        return None
    if len(found) > 1:
        raise UnsupportedLayerError("its layers have several dense MLPs")
    module, (gate, *up, down) = found[0]
    # A module without an activation of its own calls a function; the trial of the layer shows if it is another one.
    act_fn = next((getattr(module, name) for name in ACTIVATIONS if hasattr(module, name)), F.silu)
    weighting = next((getattr(block, WEIGHTING) for block in blocks if hasattr(block, WEIGHTING)), None)
    norms = places.dense_input_norm, places.dense_norm
    averages = [getattr(block, COMBINATION, None) == "average" for block in blocks]
    scale, factor = 0.5 if any(averages) else 1.0, getattr(module, FACTOR, None)
    if factor is not None:
        scale *= float(factor)
    return Dense(module, gate, up[0] if up else None, down, act_fn, weighting, *norms, scale, factor)


def factor_of(module: Any) -> float:
    """Return the parameter by which a module multiplies its results; 1 if it has none."""
    return float(getattr(module, FACTOR, 1.0))


def _images(places: Places, experts: nn.Module | None, others: Sequence[nn.Module]) -> ImageParts | None:
    """Return the parts of a layer that hold other experts, which tokens of text do not go to; None if it has none."""
    if len(others) != 1 or places.experts is None:
        return None
    for block in places.experts.module.modules():
        inside = {*block.modules()}
        if others[0] in inside and experts not in inside:
            rest = [parameter for parameter in block.parameters() if parameter.numel()]
            return ImageParts(block, others[0], _router_of(block, rest))
    return None


def _block_norm(places: Places, experts: nn.Module | None, size: int) -> Norm | None:
    """Return the norm within the block of experts, if there is no other after it; the trial shows what it norms."""
    if places.output_norm is not None or places.experts is None or places.experts.module is experts:
        return None
    norms = [norm for child in places.experts.module.children() if (norm := norm_of(child)) is not None]
    return norms[0] if len(norms) == 1 and len(norms[0].weight) == size else None


def _mlp_linears(module: nn.Module) -> list[Linear]:
    """Return the layers of an MLP: gate, up and down, the first two as one, or up and down; empty if it is none."""
    for names in DENSE_NAMES:
        linears = [linear for name in names if isinstance(linear := getattr(module, name, None), LINEARS)]
        if len(linears) == len(names):
            return linears
    return []


def _router_of(block: nn.Module, rest: Iterable[nn.Parameter]) -> nn.Module:
    """Return the smallest module that has all the remaining parameters of a block."""
    wanted = {id(parameter) for parameter in rest}
    owners = [module for module in block.modules() if wanted <= {id(value) for value in module.parameters()}]
    if not wanted or not owners:
        raise UnsupportedLayerError("its router was not found")
    return owners[-1]


def _known(norms: Iterable[Norm], mixer: nn.Module | None, dense: Dense | None) -> Iterator[nn.Parameter]:
    modules: list[nn.Module | None] = [*(norm.module for norm in norms), mixer]
    if dense is not None:
        modules += [dense.gate, dense.up, dense.down, dense.weighting]
    for module in modules:
        if module is not None:
            yield from module.parameters()
    if dense is not None and dense.factor is not None:
        yield dense.factor
