"""Mirrors of ``src/layers``: decoder layers and their parts, a step, and the head."""

from __future__ import annotations

from ctypes import Structure, c_float, c_int32, c_int64, c_void_p
from enum import IntEnum

from server.kernels.native.structures.experts import ExpertShape
from server.kernels.native.structures.matrices import Matrix, Size


class RopeKind(IntEnum):
    """The pairs of a head's dimensions that rotary embeddings rotate."""

    NONE = 0
    HALVES = 1
    INTERLEAVED = 2


class RouterKind(IntEnum):
    """The ways to choose experts from a router's logits."""

    SOFTMAX_FIRST = 0
    TOP_FIRST = 1
    SIGMOID = 2
    TOP_SIGMOID = 3
    SPARSE_MIXER = 4


class GateKind(IntEnum):
    """The functions of gates that multiply the results of attention."""

    NONE = 0
    SIGMOID = 1
    SOFTPLUS = 2


class NormKind(IntEnum):
    """The norms of rows."""

    NONE = 0
    RMS = 1
    LAYER = 2


class MixerKind(IntEnum):
    """The ways to mix tokens; the spec of each kind is a structure."""

    EXTERNAL = 0
    GROUPED_ATTENTION = 1
    LATENT_ATTENTION = 2
    GATED_DELTA_NET = 3
    SHORT_CONVOLUTION = 4
    MAMBA2 = 5
    NONE = 6
    KIMI_DELTA_ATTENTION = 7
    LIGHTNING_ATTENTION = 8
    MAMBA1 = 9


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
    ]


class GroupedAttention(Structure):
    _fields_ = [
        ("query", Matrix),
        ("key", Matrix),
        ("output", Matrix),
        ("value", Matrix),
        ("gate", Matrix),
        ("query_bias", c_void_p),
        ("key_bias", c_void_p),
        ("value_bias", c_void_p),
        ("output_bias", c_void_p),
        ("gate_bias", c_void_p),
        ("query_norm", c_void_p),
        ("key_norm", c_void_p),
        ("value_norm", c_void_p),
        ("sinks", c_void_p),
        ("key_cache", c_void_p),
        ("value_cache", c_void_p),
        ("cache_slots", c_int64),
        ("cache_dim", c_int64),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("key_dim", c_int64),
        ("value_dim", c_int64),
        ("rotary_dim", c_int64),
        ("window", c_int64),
        ("is_chunked", c_int32),
        ("norms_together", c_int32),
        ("norms_rotated", c_int32),
        ("scales_queries", c_int32),
        ("looks_ahead", c_int32),
        ("has_gates_in_query", c_int32),
        ("rope", c_int32),
        ("group", c_int32),
        ("rope_kind", c_int32),
        ("gate_kind", c_int32),
        ("cache_format", c_int32),
        ("head_norm_epsilon", c_float),
        ("value_scale", c_float),
        ("scaling", c_float),
        ("softcap", c_float),
    ]


class Indexer(Structure):
    """An indexer, which chooses the keys that each token attends to."""

    _fields_ = [
        ("query", Matrix),
        ("key", Matrix),
        ("weights", Matrix),
        ("key_norm", Norm),
        ("chosen", c_void_p),
        ("heads", c_int64),
        ("dim", c_int64),
        ("top_k", c_int64),
        ("rope_kind", c_int32),
        ("chooses", c_int32),
    ]


class LatentAttention(Structure):
    _fields_ = [
        ("query_down", Matrix),
        ("query", Matrix),
        ("latent", Matrix),
        ("to_keys", Matrix),
        ("to_values", Matrix),
        ("output", Matrix),
        ("gate", Matrix),
        ("query_down_bias", c_void_p),
        ("query_bias", c_void_p),
        ("latent_bias", c_void_p),
        ("output_bias", c_void_p),
        ("gate_bias", c_void_p),
        ("query_norm", c_void_p),
        ("latent_norm", c_void_p),
        ("indexer", c_void_p),
        ("cache", c_void_p),
        ("cache_slots", c_int64),
        ("cache_dim", c_int64),
        ("heads", c_int64),
        ("rank", c_int64),
        ("nope_dim", c_int64),
        ("rope_dim", c_int64),
        ("rotary_dim", c_int64),
        ("value_dim", c_int64),
        ("rope", c_int32),
        ("group", c_int32),
        ("scales_queries", c_int32),
        ("rope_kind", c_int32),
        ("cache_format", c_int32),
        ("query_norm_epsilon", c_float),
        ("latent_norm_epsilon", c_float),
        ("scaling", c_float),
    ]


class Projections(Structure):
    _fields_ = [
        ("inputs", Matrix * Size.MOST_PROJECTIONS),
        ("seconds", Matrix * Size.MOST_PROJECTIONS),
        ("biases", c_void_p * Size.MOST_PROJECTIONS),
        ("output", Matrix),
        ("output_bias", c_void_p),
        ("places", c_void_p),
        ("num_inputs", c_int64),
    ]


class Convolution(Structure):
    _fields_ = [
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("states", c_void_p),
        ("width", c_int64),
        ("channels", c_int64),
        ("has_silu", c_int32),
        ("unused", c_int32),
    ]


class GatedDeltaNet(Structure):
    _fields_ = [
        ("projections", Projections),
        ("convolution", Convolution),
        ("decay", c_void_p),
        ("decay_bias", c_void_p),
        ("norm", c_void_p),
        ("states", c_void_p),
        ("key_heads", c_int64),
        ("value_heads", c_int64),
        ("key_dim", c_int64),
        ("value_dim", c_int64),
        ("norm_epsilon", c_float),
        ("unused", c_int32),
    ]


class KimiDeltaAttention(Structure):
    _fields_ = [
        ("projections", Projections),
        ("convolution", Convolution),
        ("decay", c_void_p),
        ("decay_bias", c_void_p),
        ("norm", c_void_p),
        ("states", c_void_p),
        ("heads", c_int64),
        ("head_dim", c_int64),
        ("norm_epsilon", c_float),
        ("least_decay", c_float),
    ]


class LightningAttention(Structure):
    _fields_ = [
        ("projections", Projections),
        ("decay", c_void_p),
        ("norm", c_void_p),
        ("states", c_void_p),
        ("heads", c_int64),
        ("head_dim", c_int64),
        ("norm_epsilon", c_float),
        ("activation", c_int32),
    ]


class ShortConvolution(Structure):
    _fields_ = [("projections", Projections), ("convolution", Convolution)]


class Mamba1(Structure):
    _fields_ = [
        ("projections", Projections),
        ("convolution", Convolution),
        ("select", Matrix),
        ("to_steps", Matrix),
        ("step_norm", c_void_p),
        ("key_norm", c_void_p),
        ("query_norm", c_void_p),
        ("step_bias", c_void_p),
        ("decay", c_void_p),
        ("direct", c_void_p),
        ("states", c_void_p),
        ("state_size", c_int64),
        ("norm_epsilon", c_float),
        ("unused", c_int32),
    ]


class Mamba2(Structure):
    _fields_ = [
        ("projections", Projections),
        ("convolution", Convolution),
        ("decay", c_void_p),
        ("step_bias", c_void_p),
        ("direct", c_void_p),
        ("norm", c_void_p),
        ("states", c_void_p),
        ("heads", c_int64),
        ("groups", c_int64),
        ("head_dim", c_int64),
        ("state_size", c_int64),
        ("norm_size", c_int64),
        ("norm_epsilon", c_float),
        ("least_step", c_float),
        ("longest_step", c_float),
        ("unused", c_int32),
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
    ]


class LayerSpec(Structure):
    """A decoder layer, which refers to the specs of its parts; their owner keeps them in memory."""

    _fields_ = [
        ("input_norm", Norm),
        ("mixer_norm", Norm),
        ("inner_norm", Norm),
        ("output_norm", Norm),
        ("mixer", c_void_p),
        ("feed_forward", c_void_p),
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
        ("lora", c_void_p),
        ("query_scales", c_void_p),
        ("newest", c_void_p),
        ("has_own_angles", c_int32),
        ("is_exact", c_int32),
    ]


class HeadCall(Structure):
    _fields_ = [
        ("matrix", Matrix),
        ("bias", c_void_p),
        ("norm", Norm),
        ("hidden", c_void_p),
        ("rows", c_void_p),
        ("normed", c_void_p),
        ("logits", c_void_p),
        ("num_rows", c_int64),
        ("num_logits", c_int64),
        ("hidden_size", c_int64),
        ("scale", c_float),
        ("softcap", c_float),
        ("is_exact", c_int32),
        ("lora", c_void_p),
    ]
