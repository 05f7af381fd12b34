"""Finds the parts of a decoder layer, by their names and results."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from server.model.blocks.block_attention import BlockAttentionParts
from server.model.blocks.capture import LayerCapture
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.layer_recorder import children_of
from server.model.blocks.linears import LINEARS
from server.model.blocks.mixer import MixerParts
from server.model.blocks.no_mixer.parts import NoMixerParts
from server.model.blocks.norms import Norm, norm_of
from server.model.blocks.streams import find_streams
from server.model.blocks.table import MIXERS
from server.model.native_layers.parts import Dense, Parts, Projections, dense_of, mlp_linears, output_scale_of
from server.model.native_layers.shared_experts import SharedExperts
from server.model.recognition.layer_calls import LayerCalls, Places
from server.model.recognition.residuals import ResidualRows

COMBINATION = "shared_expert_combination_strategy"  # attribute: of experts and the shared one
WEIGHTING = "shared_expert_gate"
PROJECTIONS = (  # names in a block of experts: of the rows that they take, of their sum, and a norm of the former
    ("pre_expert_proj", "post_expert_proj", "pre_expert_norm"),
    ("fc1_latent_proj", "fc2_latent_proj", None),
)


@dataclass(frozen=True)
class ImageParts:
    """Experts that tokens of images go to instead of a layer's own, with a router of their own (ERNIE 4.5 VL)."""

    block: nn.Module
    experts: Any
    router: nn.Module  # owns the router's parameters


@dataclass(frozen=True, kw_only=True)
class FoundParts(Parts):
    """The parts of a decoder layer, with what trials of its modules need."""

    mixers: Sequence[MixerParts]  # of one module, as each kind that may be it; the likeliest first
    block: Any  # the MLP, with the router and the experts; or the router alone, if it is apart; None without both
    is_router_apart: bool  # it stands beside the experts
    residual_rows: ResidualRows | None
    images: ImageParts | None

    @property
    def mixer_module(self) -> nn.Module | None:
        """The family's module of the mixer; None if it has none."""
        module: nn.Module | None = self.mixers[0].module
        return module


def find_parts(layer: nn.Module, captured: LayerCapture, recurrent: Collection[nn.Module] = ()) -> FoundParts:
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
    projections = _projections(places, experts)
    block_norm = None if projections is not None else _block_norm(places, experts, captured.hidden_size)
    inside = {id(each) for each in _known([*calls.norms, *filter(None, [block_norm])], mixers[0].module, dense)}
    images = _images(places, experts, others)
    if images is not None and projections is not None:
        raise UnsupportedLayerError("its experts for images have projections around them")
    if images is not None:
        inside |= {id(value) for value in images.block.parameters()}
    shared = None
    if experts is not None and places.experts is not None:
        shared = SharedExperts.find(places.experts.module, experts)
    inside |= {id(value) for part in (shared, projections) if part is not None for value in part.parameters()}
    for module in (*(each.module for each in calls.convolutions), *(each.module for each in calls.residual_gates)):
        inside |= {id(value) for value in module.parameters()}
    if experts is not None:
        inside |= {id(value) for value in experts.parameters()}
    router = None
    if places.router is not None:
        router = places.router.module
    elif experts is not None and places.experts is not None:
        block = places.experts.module
        rest = [parameter for parameter in block.parameters() if parameter.numel() and id(parameter) not in inside]
        router = _router_of(block, rest)
    if router is not None:
        inside |= {id(value) for value in router.parameters()}
    streams = [
        replace(each, norms=calls.other_norms) if number == 0 and isinstance(each, BlockAttentionParts) else each
        for number, each in enumerate(find_streams(captured))
    ]
    inside |= {id(value) for parts in (*streams, *calls.ngrams) for value in parts.parameters()}
    _check_known(layer, inside)
    return FoundParts(
        input_norm=calls.input_norm,
        mixer_norm=calls.mixer_norm,
        other_norms=calls.other_norms,
        inner_norm=places.input_norm,
        output_norm=places.output_norm or block_norm,
        is_parallel=places.is_parallel,
        mixers=mixers,
        block=places.block,
        is_router_apart=places.router is not None,
        experts=experts,
        experts_norm=places.experts_norm,
        router=router,
        dense=dense,
        scale=output_scale_of(layer),
        residual_rows=None if streams else calls.residual_rows(places.input_norm),
        images=images,
        projections=projections,
        shared=shared,
        mixer_residual_gate=calls.mixer_residual_gate,
        inner_residual_gate=places.residual_gate,
        mixer_convolution=calls.mixer_convolution,
        output_convolution=places.output_convolution,
        streams=streams,
        ngrams=calls.ngrams[0] if calls.ngrams else None,
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
        if module is not experts and (linears := mlp_linears(module))
    ]
    if not found:
        return None
    if len(found) > 1:
        raise UnsupportedLayerError("its layers have several dense MLPs")
    dense = dense_of(found[0][0])
    assert dense is not None
    weighting = next((getattr(block, WEIGHTING) for block in blocks if hasattr(block, WEIGHTING)), None)
    averages = [getattr(block, COMBINATION, None) == "average" for block in blocks]
    return replace(
        dense,
        weighting=weighting,
        input_norm=places.dense_input_norm,
        output_norm=places.dense_norm,
        scale=dense.scale * (0.5 if any(averages) else 1.0),
    )


def _projections(places: Places, experts: nn.Module | None) -> Projections | None:
    """Return the linear layers around experts whose rows have another width; None if they take the layer's rows."""
    if places.experts is None or places.experts.module is experts:
        return None
    for names in PROJECTIONS:
        found = [getattr(places.experts.module, name, None) for name in names if name is not None]
        given, back, *norms = found
        if isinstance(given, LINEARS) and isinstance(back, LINEARS):
            return Projections.of(given, back, norms[0] if norms else None)
    return None


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
