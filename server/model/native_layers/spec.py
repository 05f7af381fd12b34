"""Builds the kernels' description of a decoder layer, and lists candidates for what only a trial can show."""

from __future__ import annotations

from ctypes import addressof
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from server.kernels.native.activation import recognise_gate
from server.kernels.native.backend import expert_shape
from server.kernels.native.slot_format import PLAIN
from server.kernels.native.structures.experts import ExpertShape
from server.kernels.native.structures.layers import (
    FeedForwardKind,
    GroupedAttention,
    LayerSpec,
    MixerKind,
    Mixture,
    Mlp,
)
from server.kernels.native.structures.matrices import Format, Matrix
from server.model.experts.expert_layer import ExpertLayer
from server.model.experts.router import RouterWeights
from server.model.hooks import AttentionOptions
from server.model.native_layers.adapters import NativeTarget
from server.model.native_layers.capture import LayerCapture
from server.model.native_layers.errors import UnsupportedLayerError
from server.model.native_layers.external_mixers import ModuleMixer
from server.model.native_layers.parts import Attention, Dense, Linear, Norm, Parts, matrix_of, no_matrix


@dataclass
class NativeLayer:
    """One decoder layer as the native kernels run it."""

    spec: LayerSpec  # refers to the two parts
    experts: ExpertLayer | None
    mixer: GroupedAttention | ModuleMixer | None = None
    attention_layer: int | None = None  # its number in the KV cache, if it has attention
    feed_forward: Mixture | Mlp | None = None
    router: RouterWeights | None = None
    keeps: list[torch.Tensor] = field(default_factory=list)  # tensors whose memory the spec refers to
    linears: dict[Any, NativeTarget] = field(default_factory=dict)  # places that adapters may add to, by module

    @property
    def attention(self) -> GroupedAttention:
        """The mixer of a layer that has attention."""
        assert isinstance(self.mixer, GroupedAttention)
        return self.mixer

    @property
    def mixture(self) -> Mixture:
        """The experts and their router, of a layer that has some."""
        assert isinstance(self.feed_forward, Mixture)
        return self.feed_forward

    def address(self, tensor: torch.Tensor | None) -> int | None:
        """Keep a float32 copy of a tensor, and return its address."""
        if tensor is None:
            return None
        self.keeps.append(tensor.detach().float().contiguous())
        return self.keeps[-1].data_ptr()

    def add_target(self, linear: Linear, matrix: str, offset: int = 0) -> None:
        """Make a linear layer known as a place that adapters may add to (``NativeTarget``)."""
        self.linears[linear] = NativeTarget(self.spec.index, matrix, linear.in_features, linear.out_features, offset)


def build_layer(
    module: nn.Module,
    index: int,
    parts: Parts,
    captured: LayerCapture,
    experts: ExpertLayer | None,
    router: RouterWeights | None,
) -> NativeLayer:
    """Build a layer's spec without the kinds of rotary positions (``fit_rope``) and of router (``find_router_kind``).

    Raises:
        UnsupportedLayerError: the layer does not have the usual structure.
    """
    spec = LayerSpec(index=index, mixer_kind=MixerKind.EXTERNAL)
    layer = NativeLayer(spec, experts)
    spec.input_norm, spec.inner_norm = (layer.address(norm.weight) for norm in (parts.input_norm, parts.inner_norm))
    if parts.input_norm.epsilon != parts.inner_norm.epsilon:
        raise UnsupportedLayerError("its norms have different epsilons")
    if {len(parts.input_norm.weight), len(parts.inner_norm.weight)} != {captured.given.shape[1]}:
        raise UnsupportedLayerError("its norms have another size than its hidden states")
    spec.norm_epsilon = parts.input_norm.epsilon
    spec.residual_scale = float(getattr(module, "residual_multiplier", 1.0))
    if isinstance(parts.mixer, Attention):
        _set_attention(layer, parts.mixer, captured.options)
    mlp = None if parts.dense is None else _mlp(layer, parts.dense)
    if parts.experts is not None:
        layer.feed_forward = _mixture(layer, parts, router, mlp)
        spec.feed_forward_kind = FeedForwardKind.EXPERTS
    elif mlp is not None and experts is None:
        layer.feed_forward = mlp
        spec.feed_forward_kind = FeedForwardKind.MLP
    else:
        raise UnsupportedLayerError("a layer has neither experts with a router nor an MLP")
    spec.feed_forward = addressof(layer.feed_forward)
    return layer


def _set_attention(layer: NativeLayer, attention: Attention, options: AttentionOptions | None) -> None:
    if options is None:
        raise UnsupportedLayerError("a layer has no attention")
    own: Any = attention.module
    heads, spec = GroupedAttention(), layer.spec
    layer.mixer, layer.attention_layer = heads, own.layer_idx
    spec.mixer, spec.mixer_kind = addressof(heads), MixerKind.GROUPED_ATTENTION
    for name in ("query", "key", "value", "output"):
        linear = getattr(attention, name)
        setattr(heads, name, matrix_of(linear))
        setattr(heads, f"{name}_bias", layer.address(linear.bias))
        layer.add_target(linear, name)
    if len({heads.query.format, heads.key.format, heads.value.format}) > 1:  # they share quantised rows
        raise UnsupportedLayerError("its queries, keys and values have weights of different formats")
    _set_heads(heads, attention)
    _set_head_norms(layer, attention.query_norm, attention.key_norm)
    heads.scaling, heads.softcap = options.scaling, options.softcap or 0.0
    heads.window, heads.is_chunked = options.sliding_window or 0, int(options.is_chunked)
    if options.sinks is not None and options.sinks.numel() != heads.heads:
        raise UnsupportedLayerError("its sinks are not one for each head")
    heads.sinks = layer.address(options.sinks)


def _set_heads(spec: GroupedAttention, attention: Attention) -> None:
    spec.key_dim = int(getattr(attention.module, "head_dim", 0))
    if not 0 < spec.key_dim <= min(attention.query.out_features, attention.key.out_features):
        raise UnsupportedLayerError(f"its heads have {spec.key_dim} numbers")
    spec.heads, spec.kv_heads = (linear.out_features // spec.key_dim for linear in (attention.query, attention.key))
    spec.value_dim = attention.value.out_features // spec.kv_heads
    if spec.value_dim == spec.key_dim and attention.output.in_features * 2 == attention.query.out_features:
        spec.heads, spec.has_output_gate = spec.heads // 2, 1  # which a trial of its queries confirms
    if spec.heads % spec.kv_heads or attention.output.in_features != spec.heads * spec.value_dim:
        raise UnsupportedLayerError("the sizes of its heads and projections differ")


def _set_head_norms(layer: NativeLayer, query: Norm | None, key: Norm | None) -> None:
    if query is None or key is None:
        if query is not key:
            raise UnsupportedLayerError("only its queries or only its keys are normed")
        return
    spec = layer.attention
    if query.epsilon != key.epsilon:
        raise UnsupportedLayerError("its norms have different epsilons")
    sizes = len(query.weight), len(key.weight)
    if sizes == (spec.heads * spec.key_dim, spec.kv_heads * spec.key_dim) and sizes[0] != spec.key_dim:
        spec.norms_together = 1
    elif sizes != (spec.key_dim, spec.key_dim):
        raise UnsupportedLayerError("its heads' norms have another size")
    spec.query_norm, spec.key_norm = layer.address(query.weight), layer.address(key.weight)
    spec.head_norm_epsilon = query.epsilon


def _mlp(layer: NativeLayer, dense: Dense) -> Mlp:
    linears = dense.gate, dense.up, dense.down
    if any(linear.bias is not None for linear in linears):
        raise UnsupportedLayerError("its dense MLP has biases")
    like: Any = SimpleNamespace(
        has_gate=True, act_fn=dense.act_fn, _apply_gate=lambda x: dense.act_fn(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1]
    )
    gate = recognise_gate(like)
    if gate is None:
        raise UnsupportedLayerError("its dense MLP has an unknown activation")
    parts = (Matrix * 2)(matrix_of(dense.gate), matrix_of(dense.up))
    mlp = Mlp(ExpertShape(parts, matrix_of(dense.down), -1, -1, gate, 2, Format.FLOAT32), no_matrix())
    layer.add_target(dense.gate, "dense_first")
    layer.add_target(dense.up, "dense_first", dense.gate.out_features)
    layer.add_target(dense.down, "dense_second")
    if dense.weighting is not None:
        if dense.weighting.bias is not None or dense.weighting.out_features != 1:
            raise UnsupportedLayerError("its shared expert is weighted otherwise")
        mlp.weighting = matrix_of(dense.weighting)
        layer.add_target(dense.weighting, "dense_gate")
    return mlp


def _mixture(layer: NativeLayer, parts: Parts, router: RouterWeights | None, shared: Mlp | None) -> Mixture:
    if layer.experts is None or router is None:
        raise UnsupportedLayerError("its router was not found")
    shape = expert_shape(parts.experts, layer.experts.layout)
    if isinstance(shape, str):
        raise UnsupportedLayerError(shape)
    owner = next((each for each in parts.router.modules() if getattr(each, "weight", None) is router.weight), None)
    if owner is not None:
        outputs, inputs = router.weight.shape
        layer.linears[owner] = NativeTarget(layer.spec.index, "router", inputs, outputs)
    if router.weight.shape[0] != len(layer.experts.keys):
        raise UnsupportedLayerError(f"its router chooses among {router.weight.shape[0]} experts")
    weight = router.weight.detach().contiguous()  # the kernels read it as float32, which loses nothing
    weight = weight if weight.dtype in PLAIN else weight.float()
    layer.keeps.append(weight)
    mixture = Mixture(experts=shape, num_experts=weight.shape[0])
    if shared is not None:
        mixture.shared, mixture.has_shared = shared, 1
    own = mixture.router
    own.matrix = Matrix(
        format=PLAIN[weight.dtype], outputs=weight.shape[0], inputs=weight.shape[1], data=weight.data_ptr()
    )
    own.bias, layer.router = layer.address(router.bias), router
    own.correction = layer.address(router.correction)
    own.num_groups = own.top_groups = 1
    own.scale = 1.0
    return mixture
