"""Builds the kernels' description of a decoder layer but for its mixer."""

from __future__ import annotations

from ctypes import addressof
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from server.kernels.expert import scales_input
from server.kernels.native.activation import recognise_gate
from server.kernels.native.backend import expert_shape
from server.kernels.native.slot_format import PLAIN
from server.kernels.native.structures.adapters import LoraPlace
from server.kernels.native.structures.experts import ExpertShape
from server.kernels.native.structures.layers import FeedForwardKind, Mixture, Mlp, NormKind
from server.kernels.native.structures.matrices import Format, Matrix
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.layer import NativeLayer
from server.model.blocks.linears import matrix_of, no_matrix
from server.model.blocks.norms import Norm, norm_of
from server.model.experts.expert_layer import ExpertLayer
from server.model.experts.router import RouterWeights
from server.model.native_layers.dense_gate import DenseGate
from server.model.native_layers.depth_scales import DepthScales
from server.model.native_layers.own_router import OwnRouter
from server.model.native_layers.parts import Dense, Parts, Projections
from server.model.native_layers.router_mlp import RouterMlpParts

MIXER_RESULTS, INNER_RESULTS = 2, 3  # numbers of a layer's convolutions, after those of keys and values


@dataclass(frozen=True)
class LayerRouter:
    """The router of a layer of experts."""

    weights: RouterWeights | None
    own: OwnRouter | None = None  # if it has a norm of its own
    table: torch.Tensor | None = None  # int32 (vocabulary, k): the experts of each token
    factor: float = 1.0  # the parameter that multiplies the weights of experts
    mlp: RouterMlpParts | None = None  # makes the rows that the weights take
    chooses: bool = False  # see ``Router`` of declarations


NO_ROUTER = LayerRouter(None)


def build_layer(
    module: nn.Module,
    index: int,
    parts: Parts,
    experts: ExpertLayer | None,
    *,
    router: RouterWeights | None,
    own: OwnRouter | None = None,
    router_mlp: RouterMlpParts | None = None,
) -> NativeLayer:
    """Build a layer without its mixer, and without the kind of its router (``find_router_kind``).

    Raises:
        UnsupportedLayerError: the layer does not have the usual structure.
    """
    layer = NativeLayer(index, experts)
    spec = layer.spec
    spec.input_norm, spec.inner_norm = (
        layer.norm(norm, can_be_gated=True) for norm in (parts.input_norm, parts.inner_norm)
    )
    spec.input_gate = layer.gates(parts.input_norm, LoraPlace.INPUT_GATE)
    spec.inner_gate = layer.gates(parts.inner_norm, LoraPlace.INNER_GATE)
    spec.mixer_norm, spec.output_norm = layer.norm(parts.mixer_norm), layer.norm(parts.output_norm)
    spec.output_scale = 1.0 if parts.scale is None else float(parts.scale)
    depth = DepthScales.of(module)
    if depth is not None:
        spec.mixer_norm = layer.norm(depth.mixer_norm(parts.mixer_norm))
        spec.inner_norm = layer.norm(depth.inner_norm(parts.inner_norm))
        spec.output_norm = layer.norm(depth.output_norm(parts.output_norm))
        spec.output_scale *= depth.output_scale
    if parts.streams:
        places = LoraPlace.INPUT_GATE, LoraPlace.INNER_GATE
        spec.mixer_streams, spec.inner_streams = map(layer.stream_mix, parts.streams, places)
    layer.add_ngrams(parts.ngrams)
    spec.mixer_convolution = layer.convolution(parts.mixer_convolution, MIXER_RESULTS)
    spec.inner_convolution = layer.convolution(parts.output_convolution, INNER_RESULTS)
    spec.mixer_residual_gate = layer.residual_gate(parts.mixer_residual_gate)
    spec.inner_residual_gate = layer.residual_gate(parts.inner_residual_gate)
    spec.is_parallel = int(parts.is_parallel)
    spec.residual_scale = float(getattr(module, "residual_multiplier", 1.0))
    mlp = None if parts.dense is None else _mlp(layer, parts.dense)
    if parts.experts is not None:
        layer.feed_forward = _mixture(layer, parts, router, mlp)
        if own is not None:
            layer.mixture.router_norm = layer.norm(own.norm)
            layer.mixture.router.expert_scales = layer.kept.keep(own.expert_scales)
        if router_mlp is not None:
            layer.mixture.router.mlp, layer.router_mlp = router_mlp.build(layer.kept), router_mlp
            for linear, place in router_mlp.places().items():
                layer.add_target(linear, place)
        spec.feed_forward_kind = FeedForwardKind.EXPERTS
    elif mlp is not None and experts is None:
        layer.feed_forward = mlp
        spec.feed_forward_kind = FeedForwardKind.MLP
    elif mlp is None and experts is None:
        spec.feed_forward_kind = FeedForwardKind.NONE
        return layer
    else:
        raise UnsupportedLayerError("a layer has experts of unknown use")
    spec.feed_forward = addressof(layer.feed_forward)
    return layer


def _mlp(layer: NativeLayer, dense: Dense) -> Mlp:
    linears = [linear for linear in (dense.gate, dense.up, dense.down) if linear is not None]
    if any(linear.bias is not None for linear in linears):
        raise UnsupportedLayerError("its dense MLP has biases")
    gate = recognise_gate(DenseGate(dense))
    if gate is None:
        raise UnsupportedLayerError("its dense MLP has an unknown activation")
    parts = (Matrix * 2)(*map(matrix_of, linears[:-1]))
    shape = ExpertShape(parts, matrix_of(dense.down), -1, -1, gate, len(linears) - 1, Format.FLOAT32)
    mlp = Mlp(shape=shape, weighting=no_matrix())
    mlp.scale = dense.scale
    mlp.input_norm, mlp.output_norm = layer.norm(dense.input_norm), layer.norm(dense.output_norm)
    layer.add_target(dense.gate, LoraPlace.DENSE_FIRST)
    if dense.up is not None:
        layer.add_target(dense.up, LoraPlace.DENSE_FIRST, dense.gate.out_features)
    layer.add_target(dense.down, LoraPlace.DENSE_SECOND)
    if dense.weighting is not None:
        if dense.weighting.bias is not None or dense.weighting.out_features != 1:
            raise UnsupportedLayerError("its shared expert is weighted otherwise")
        mlp.weighting = matrix_of(dense.weighting)
        layer.add_target(dense.weighting, LoraPlace.DENSE_GATE)
    return mlp


def _mixture(layer: NativeLayer, parts: Parts, router: RouterWeights | None, shared: Mlp | None) -> Mixture:
    if layer.experts is None or router is None:
        raise UnsupportedLayerError("its router was not found")
    shape = expert_shape(parts.experts, layer.experts.layout, norms_results=True)
    if isinstance(shape, str):
        raise UnsupportedLayerError(shape)
    owner = next((each for each in parts.router.modules() if getattr(each, "weight", None) is router.weight), None)
    if owner is not None and not getattr(parts.experts, "num_identities", 0):  # LongCat reads the weights of a linear
        outputs, inputs = router.weight.shape  # layer without calling it, so that PEFT's additions do nothing
        layer.add_place(owner, LoraPlace.ROUTER, inputs, outputs)
    num_experts, num_identities = len(layer.experts.keys), getattr(parts.experts, "num_identities", 0)
    if router.weight.shape[0] != num_experts + num_identities + router.num_shared + router.num_skips:
        raise UnsupportedLayerError(f"its router chooses among {router.weight.shape[0]} experts")
    weight = router.weight.detach().contiguous()  # the kernels read it as float32, which loses nothing
    weight = weight if weight.dtype in PLAIN else weight.float()
    mixture = Mixture(experts=shape, num_experts=num_experts, output_norm=layer.norm(_experts_norm(parts, router)))
    mixture.experts_scale, mixture.num_identities = 1.0, num_identities
    mixture.scales_input = int(scales_input(parts.experts))
    if parts.experts.has_post_expert_norm:
        mixture.result_norm = layer.norm(_result_norm(parts.experts, shape.second.outputs))
    _set_projections(mixture, layer, parts.projections)
    if shared is not None:
        mixture.shared, mixture.has_shared = shared, 1
    if parts.shared is not None:
        if shared is not None or parts.shared.count != router.num_shared:
            raise UnsupportedLayerError("its shared experts are not those that its router weights")
        parts.shared.describe(mixture, layer.kept)
    elif router.num_shared:
        raise UnsupportedLayerError("its router weights shared experts that were not found")
    own = mixture.router
    own.matrix = Matrix(
        format=PLAIN[weight.dtype], outputs=weight.shape[0], inputs=weight.shape[1], data=layer.kept.hold(weight)
    )
    own.bias, layer.router = layer.kept.keep(router.bias), router
    own.correction = layer.kept.keep(router.correction)
    own.num_groups = own.top_groups = 1
    own.scale, own.logits_scale, own.num_skips = 1.0, router.logits_scale, router.num_skips
    return mixture


def _result_norm(experts: Any, size: int) -> Norm:
    norm = norm_of(experts.post_expert_norm, size)
    if norm is None:
        raise UnsupportedLayerError("the results of its experts are normed in another way")
    return norm


def _set_projections(mixture: Mixture, layer: NativeLayer, parts: Projections | None) -> None:
    if parts is None:
        return
    mixture.input_projection, mixture.output_projection = matrix_of(parts.input), matrix_of(parts.output)
    mixture.projected_norm = layer.norm(parts.norm)
    layer.add_target(parts.input, LoraPlace.EXPERTS_INPUT)
    layer.add_target(parts.output, LoraPlace.EXPERTS_OUTPUT)


def _experts_norm(parts: Parts, router: RouterWeights) -> Norm | None:
    """Return what is done to the experts' weighted sum: its norm, or the bias that the owner of their router adds."""
    bias, (num_rows, hidden_size) = getattr(parts.router, "bias", None), router.weight.shape
    if not isinstance(bias, nn.Parameter) or bias.shape != (hidden_size,) or num_rows == hidden_size:
        return parts.experts_norm
    if parts.experts_norm is not None:
        raise UnsupportedLayerError("its experts have a norm and a bias of their sum")
    return Norm(parts.router, torch.ones(hidden_size), 0.0, NormKind.AFFINE, bias)


def rotary_of(body: nn.Module) -> Any:
    """Return the module of a model's body that computes cosines and sines for its mixers; None if it has none."""
    return next((each for each in body.children() if hasattr(each, "inv_freq")), None)


def table_of(module: Any) -> torch.Tensor:
    """Return the table of a router, int32 ``(vocabulary, k)``."""
    table: torch.Tensor = next(each for each in module.buffers() if not each.is_floating_point() and each.ndim == 2)  # noqa: PLR2004
    return table.to(torch.int32).contiguous()
