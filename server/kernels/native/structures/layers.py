"""Mirrors of ``src/layers``: decoder layers, their norms and feed-forward parts, a step, and the head."""

from __future__ import annotations

from ctypes import Structure, c_float, c_int32, c_int64, c_void_p
from enum import IntEnum

from server.kernels.native.structures.experts import ExpertShape
from server.kernels.native.structures.matrices import Matrix


class RouterKind(IntEnum):
    """The ways to choose experts from a router's logits."""

    SOFTMAX_FIRST = 0
    TOP_FIRST = 1
    SIGMOID = 2
    TOP_SIGMOID = 3
    SPARSE_MIXER = 4
    SQRT_SOFTPLUS = 5


class NormKind(IntEnum):
    """The norms of rows."""

    NONE = 0
    RMS = 1
    LAYER = 2
    READY = 3


class FeedForwardKind(IntEnum):
    """The parts of a layer that compute each token on its own: an ``Mlp``, a ``Mixture`` of experts, or none."""

    MLP = 0
    EXPERTS = 1
    NONE = 2


class Norm(Structure):
    """A norm; one without a kind leaves rows as they are."""

    _fields_ = [("weight", c_void_p), ("bias", c_void_p), ("epsilon", c_float), ("kind", c_int32)]


class Router(Structure):
    _fields_ = [
        ("matrix", Matrix),
        ("bias", c_void_p),
        ("correction", c_void_p),
        ("expert_scales", c_void_p),
        ("kind", c_int32),
        ("top_k", c_int32),
        ("num_groups", c_int32),
        ("top_groups", c_int32),
        ("is_normalised", c_int32),
        ("scale", c_float),
        ("near", c_float),
        ("is_by_best", c_int32),
        ("table", c_void_p),
        ("table_rows", c_int64),
        ("num_shared", c_int64),
    ]


class Mlp(Structure):
    _fields_ = [
        ("shape", ExpertShape),
        ("weighting", Matrix),
        ("input_norm", Norm),
        ("output_norm", Norm),
        ("scale", c_float),
    ]


class Mixture(Structure):
    _fields_ = [
        ("router", Router),
        ("experts", ExpertShape),
        ("shared", Mlp),
        ("router_norm", Norm),
        ("output_norm", Norm),
        ("num_experts", c_int32),
        ("has_shared", c_int32),
        ("experts_scale", c_float),
        ("scales_input", c_int32),
        ("num_identities", c_int32),
        ("is_deferred", c_int32),
        ("shared_bytes", c_int64),
    ]


class NormGate(Structure):
    """The gates of a norm's results, which are made from them."""

    _fields_ = [("down", Matrix), ("up", Matrix)]


class StreamGates(Structure):
    """The gates of the rows of a residual stream, which are made from them."""

    _fields_ = [("down", Matrix), ("up", Matrix)]


class StreamMix(Structure):
    """Sums the rows of a token's residual stream for a part of a layer, and adds its result to each."""

    _fields_ = [
        ("logits", Matrix),
        ("bias", c_void_p),
        ("norm", c_void_p),
        ("gates", c_void_p),
        ("norm_epsilon", c_float),
        ("epsilon", c_float),
        ("result_epsilon", c_float),
        ("magnitude", c_float),
        ("scales", c_float * 3),
        ("num_streams", c_int32),
        ("iterations", c_int32),
        ("is_last", c_int32),
    ]


class LayerSpec(Structure):
    """A decoder layer, which refers to the specs of its parts; their owner keeps them in memory."""

    _fields_ = [
        ("input_norm", Norm),
        ("mixer_norm", Norm),
        ("inner_norm", Norm),
        ("output_norm", Norm),
        ("input_gate", c_void_p),
        ("inner_gate", c_void_p),
        ("mixer_streams", c_void_p),
        ("inner_streams", c_void_p),
        ("ngrams", c_void_p),
        ("mixer_convolution", c_void_p),
        ("inner_convolution", c_void_p),
        ("mixer", c_void_p),
        ("feed_forward", c_void_p),
        ("next_mixture", c_void_p),
        ("mixer_kind", c_int32),
        ("feed_forward_kind", c_int32),
        ("index", c_int32),
        ("is_parallel", c_int32),
        ("residual_scale", c_float),
        ("output_scale", c_float),
        ("mixer_residual", c_float),
        ("inner_residual", c_float),
        ("adds_deferred", c_int32),
    ]


class ExpertSets(Structure):
    _fields_ = [
        ("set_of_sequence", c_void_p),
        ("routers", c_void_p),
        ("places", c_void_p),
        ("numbers", c_void_p),
        ("num_sets", c_int64),
        ("width", c_int64),
    ]


class StepPredictions(Structure):
    _fields_ = [("chosen", c_void_p), ("parts", c_void_p), ("num_parts", c_int64)]


class StepSequence(Structure):
    _fields_ = [
        ("first_row", c_int32),
        ("num_tokens", c_int32),
        ("first_position", c_int32),
        ("first_block", c_int32),
        ("state_from", c_int32),
        ("state_to", c_int32),
    ]


class StepCall(Structure):
    _fields_ = [
        ("hidden", c_void_p),
        ("sequences", c_void_p),
        ("block_tables", c_void_p),
        ("cosines", c_void_p),
        ("sines", c_void_p),
        ("normed", c_void_p),
        ("chosen", c_void_p),
        ("weights", c_void_p),
        ("slots", c_void_p),
        ("counts", c_void_p),
        ("sets", c_void_p),
        ("tokens", c_int64),
        ("num_sequences", c_int64),
        ("hidden_size", c_int64),
        ("most_top_k", c_int64),
        ("most_experts", c_int64),
        ("predictions", c_void_p),
        ("lora", c_void_p),
        ("query_scales", c_void_p),
        ("streams", c_void_p),
        ("token_ids", c_void_p),
        ("newest", c_void_p),
        ("has_own_angles", c_int32),
        ("is_exact", c_int32),
    ]


class HeadCall(Structure):
    _fields_ = [
        ("matrix", Matrix),
        ("bias", c_void_p),
        ("norm", Norm),
        ("streams", c_void_p),
        ("hidden", c_void_p),
        ("rows", c_void_p),
        ("normed", c_void_p),
        ("logits", c_void_p),
        ("num_rows", c_int64),
        ("num_logits", c_int64),
        ("hidden_size", c_int64),
        ("vocabulary", c_int64),
        ("scale", c_float),
        ("softcap", c_float),
        ("is_exact", c_int32),
        ("lora", c_void_p),
    ]
