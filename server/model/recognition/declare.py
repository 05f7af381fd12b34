"""Declares a model from what was recognised on its twin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from server.kernels.native.structures.layers import Mixture, RouterKind
from server.kernels.native.structures.layers import Router as RouterSpec
from server.model.architecture import decoder_layers, text_body
from server.model.blocks.block_attention import BlockAttentionParts
from server.model.blocks.capture import Capture
from server.model.blocks.declaration import MixerDeclaration, RotaryDeclaration
from server.model.blocks.layer import NativeLayer
from server.model.blocks.norms import Norm
from server.model.blocks.residual_convolution import ResidualConvolution
from server.model.blocks.residual_gates import ResidualGateParts
from server.model.declarations.declaration import (
    Declaration,
    Experts,
    ImageExperts,
    Layer,
    Mlp,
    Rotary,
    Router,
)
from server.model.native_layers.head import Head
from server.model.native_layers.parts import Dense
from server.model.native_layers.spec import LayerRouter
from server.model.recognition.find_parts import FoundParts
from server.model.recognition.positions import LayerPositions
from server.model.recognition.twin import Twin


@dataclass(frozen=True)
class FoundLayer:
    """One block of a layer, after its trials."""

    layer: NativeLayer
    parts: FoundParts
    mixer: MixerDeclaration
    router: LayerRouter


@dataclass(frozen=True)
class Recognition:
    """Findings of the trials on a twin."""

    twin: Twin
    captured: Capture
    blocks: Sequence[FoundLayer]
    images: Mapping[int, FoundLayer]  # experts for images, by the block that has them
    positions: LayerPositions
    embedding_scale: float
    is_scale_rounded: bool
    head: Head


def declare(found: Recognition) -> Declaration:
    """Return the declaration of the model of a twin, with all its layers."""
    twin = found.twin
    own: Sequence[Any] = [*(decoder_layers(text_body(twin.model)) or ())]
    declared: list[list[Layer]] = [[] for _ in own]
    for number, (block, captured) in enumerate(zip(found.blocks, found.captured.layers, strict=True)):
        index = next(place for place, layer in enumerate(own) if layer is captured.layer)
        name = _Names(own[index], twin.model)
        declared[index].append(_layer(block, found.images.get(number), name, found.positions))
    head, last = found.head.call, found.captured.layers[-1]
    return Declaration(
        layers=tuple(layer for index in twin.layer_of for layer in declared[index]),
        layers_in_one=len(declared[0]),
        rotary=_rotary(found, twin.model),
        embedding_scale=found.embedding_scale,
        is_scale_rounded=found.is_scale_rounded,
        logits_scale=shortest(head.scale),
        is_head_input_scaled=found.head.input_scale != 1.0,
        unused_logits=head.matrix.outputs - head.vocabulary,
        num_streams=last.num_streams,
    )


def shortest(number: float) -> float:
    """Return the float64 with the fewest digits that is this number in float32."""
    return float(str(np.float32(number)))


class _Names:
    """The names of modules and parameters of a layer.

    Args:
        layer: of the model.
        model: its names of parameters have another prefix.
    """

    def __init__(self, layer: nn.Module, model: nn.Module):
        self._modules = {id(module): name for name, module in layer.named_modules()}
        prefix = next(name for name, module in model.named_modules() if module is layer)
        self._prefix = f"{prefix}."

    def of(self, module: Any) -> str:
        name: str = self._modules[id(module)]
        return name

    def norm(self, norm: Norm | ResidualConvolution | ResidualGateParts | None) -> str | None:
        return None if norm is None else self.of(norm.module)

    def inside(self, name: str) -> str:
        """Return a name in the model as one in the layer."""
        return name.removeprefix(self._prefix)


def _layer(found: FoundLayer, images: FoundLayer | None, names: _Names, positions: LayerPositions) -> Layer:
    layer, parts, spec = found.layer, found.parts, found.layer.spec
    mixer = layer.mixer.declare(found.mixer)
    if isinstance(mixer, RotaryDeclaration):
        mixer = replace(mixer, rotary=positions.kind_of(layer))
    experts = None
    if layer.experts is not None:
        experts = _experts(layer.mixture, found, names)
        if images is not None and parts.images is not None:
            router = _router(images.layer.mixture.router, images.router, parts.images.router, names)
            block = names.of(parts.images.block)
            experts = replace(
                experts, images=ImageExperts(block=block, module=names.of(parts.images.experts), router=router)
            )
    return Layer(
        mixer=mixer,
        experts=experts,
        mlp=None if parts.dense is None else _mlp(parts.dense, names),
        input_norm=names.norm(parts.input_norm),
        mixer_norm=names.norm(parts.mixer_norm),
        inner_norm=names.norm(parts.inner_norm),
        output_norm=names.norm(parts.output_norm),
        is_parallel=parts.is_parallel,
        residual_scale=shortest(spec.residual_scale),
        mixer_residual=shortest(spec.mixer_residual),
        inner_residual=shortest(spec.inner_residual),
        mixer_residual_gate=names.norm(parts.mixer_residual_gate),
        inner_residual_gate=names.norm(parts.inner_residual_gate),
        mixer_convolution=names.norm(parts.mixer_convolution),
        output_convolution=names.norm(parts.output_convolution),
        key_input_norm=names.norm(parts.other_norms[0]) if parts.other_norms else None,
        value_input_norm=names.norm(parts.other_norms[1]) if parts.other_norms else None,
        starts_block=any(isinstance(each, BlockAttentionParts) and each.starts_block for each in parts.streams),
        streams=tuple("" if each.module is None else names.of(each.module) for each in parts.streams),
        ngrams=None if parts.ngrams is None else names.of(parts.ngrams.module),
        adds_deferred=bool(spec.adds_deferred),
    )


def _experts(mixture: Mixture, found: FoundLayer, names: _Names) -> Experts:
    parts, projections = found.parts, found.parts.projections
    return Experts(
        module=names.of(parts.experts),
        router=_router(mixture.router, found.router, parts.router, names),
        input_projection=None if projections is None else names.of(projections.input),
        projected_norm=None if projections is None else names.norm(projections.norm),
        output_projection=None if projections is None else names.of(projections.output),
        norm=names.norm(parts.experts_norm),
        scale=shortest(mixture.experts_scale),
        is_deferred=bool(mixture.is_deferred),
        shared=None if parts.shared is None else names.of(parts.shared.module),
    )


def _router(spec: RouterSpec, found: LayerRouter, module: Any, names: _Names) -> Router:
    weights = found.weights
    assert weights is not None
    own = {role: names.inside(name) for role, name in weights.names.items()}
    return Router(
        module=names.of(module),
        weight=own.get("weight"),
        bias=own.get("bias"),
        correction=own.get("correction"),
        kind=_kind(spec, has_table=found.table is not None),
        top_k=int(spec.top_k),
        logits_scale=shortest(spec.logits_scale),
        is_normalised=bool(spec.is_normalised),
        scale=shortest(spec.scale / found.factor),
        groups=int(spec.num_groups),
        top_groups=int(spec.top_groups),
        is_by_best=bool(spec.is_by_best),
        near=shortest(spec.near),
        has_table=found.table is not None,
        num_shared=weights.num_shared,
        num_skips=weights.num_skips,
        has_mlp=found.mlp is not None,
        chooses=found.chooses,
    )


def _kind(spec: RouterSpec, *, has_table: bool) -> RouterKind:
    """Return the kind of a router; sigmoids before and after a choice by a table are equal."""
    kind = RouterKind(spec.kind)
    return RouterKind.SIGMOID if has_table and kind is RouterKind.TOP_SIGMOID else kind


def _mlp(dense: Dense, names: _Names) -> Mlp:
    factor = 1.0 if dense.factor is None else float(dense.factor)
    return Mlp(
        module=names.of(dense.module),
        weighting=None if dense.weighting is None else names.of(dense.weighting),
        input_norm=names.norm(dense.input_norm),
        output_norm=names.norm(dense.output_norm),
        scale=shortest(dense.scale / factor),
    )


def _rotary(found: Recognition, model: nn.Module) -> tuple[Rotary, ...]:
    names = {module: name for name, module in text_body(model).named_modules()}
    return tuple(
        Rotary(
            module=names[call.module],
            columns=positions.columns,
            num_axes=call.num_axes,
            arguments=call.args,
            named=call.kwargs,
        )
        for call, positions in zip(found.positions.calls, found.positions.kinds, strict=False)
    )


def rounding_of(scale: float, before: torch.Tensor, after: torch.Tensor, dtype: torch.dtype) -> bool:
    """Return whether a model in some dtype multiplies embeddings by a factor that it rounded to the dtype.

    Args:
        scale: the factor in float32.
        before: the scaled embeddings in float32.
        after: those of the model in the dtype.
    """
    measured = scale * float((before * after).sum() / before.square().sum())
    rounded = float(torch.tensor(scale, dtype=dtype))
    return abs(measured - rounded) < abs(measured - scale)
