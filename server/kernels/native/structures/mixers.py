"""Mirrors of the mixers of ``src/layers``: attention and recurrences."""

from __future__ import annotations

from ctypes import Structure, c_float, c_int32, c_int64, c_void_p
from enum import IntEnum

from server.kernels.native.structures.layers import Norm
from server.kernels.native.structures.matrices import Matrix, Size


class RopeKind(IntEnum):
    """The pairs of a head's dimensions that rotary embeddings rotate."""

    NONE = 0
    HALVES = 1
    INTERLEAVED = 2


class GateKind(IntEnum):
    """The functions of gates that multiply the results of attention."""

    NONE = 0
    SIGMOID = 1
    SOFTPLUS = 2


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
    COMPRESSED_ATTENTION = 10


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
        ("indexer", c_void_p),
        ("pools", c_void_p),
        ("relative", c_void_p),
        ("key_convolution", c_void_p),
        ("value_convolution", c_void_p),
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
        ("has_keys_in_query", c_int32),
        ("rope", c_int32),
        ("group", c_int32),
        ("rope_kind", c_int32),
        ("gate_kind", c_int32),
        ("cache_format", c_int32),
        ("head_norm_epsilon", c_float),
        ("value_scale", c_float),
        ("scaling", c_float),
        ("softcap", c_float),
        ("clip", c_float),
    ]


class RelativeBiases(Structure):
    """Biases of scores by the distance from a token back to a key: sums of profiles with weights of the token."""

    _fields_ = [("weights", Matrix), ("profiles", c_void_p), ("num_profiles", c_int64), ("extent", c_int64)]


class HeadScales(Structure):
    """Factors of queries by their position and head; without scales there are none."""

    _fields_ = [("scales", c_void_p), ("offsets", c_void_p)]


class BlockIndexer(Structure):
    """An indexer that chooses blocks of keys for each head of keys."""

    _fields_ = [
        ("query", Matrix),
        ("key", Matrix),
        ("query_norm", Norm),
        ("key_norm", Norm),
        ("cache", c_void_p),
        ("chosen", c_void_p),
        ("heads", c_int64),
        ("dim", c_int64),
        ("block_size", c_int64),
        ("top_k", c_int64),
        ("num_local", c_int64),
        ("rope_kind", c_int32),
        ("unused", c_int32),
    ]


class PoolIndexer(Structure):
    """An indexer that chooses pools of keys for all heads."""

    _fields_ = [
        ("query", Matrix),
        ("key", Matrix),
        ("query_norm", Norm),
        ("key_norm", Norm),
        ("cache", c_void_p),
        ("chosen", c_void_p),
        ("heads", c_int64),
        ("dim", c_int64),
        ("pool", c_int64),
        ("top_k", c_int64),
        ("rope_kind", c_int32),
        ("is_given", c_int32),
    ]


class Indexer(Structure):
    """An indexer, which chooses the keys that each token attends to."""

    _fields_ = [
        ("query", Matrix),
        ("key", Matrix),
        ("weights", Matrix),
        ("pool_gate", Matrix),
        ("pool_bias", c_void_p),
        ("key_norm", Norm),
        ("query_input_norm", Norm),
        ("head_scales", HeadScales),
        ("chosen", c_void_p),
        ("heads", c_int64),
        ("dim", c_int64),
        ("top_k", c_int64),
        ("rope_kind", c_int32),
        ("chooses", c_int32),
        ("is_window", c_int32),
        ("takes_hidden", c_int32),
        ("rotates_last", c_int32),
        ("pool", c_int32),
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
        ("rope_norm", c_void_p),
        ("sinks", c_void_p),
        ("head_scales", HeadScales),
        ("indexer", c_void_p),
        ("cache", c_void_p),
        ("source", c_void_p),
        ("source_dim", c_int64),
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
        ("takes_raw", c_int32),
        ("has_gates_in_query", c_int32),
        ("rope_kind", c_int32),
        ("cache_format", c_int32),
        ("query_norm_epsilon", c_float),
        ("latent_norm_epsilon", c_float),
        ("scaling", c_float),
    ]


class Compressor(Structure):
    _fields_ = [
        ("key", Matrix),
        ("gate", Matrix),
        ("bias", c_void_p),
        ("norm", c_void_p),
        ("dim", c_int64),
        ("epsilon", c_float),
        ("unused", c_int32),
    ]


class CompressedAttention(Structure):
    _fields_ = [
        ("query_down", Matrix),
        ("query", Matrix),
        ("key", Matrix),
        ("groups", Matrix),
        ("output", Matrix),
        ("keys", Compressor),
        ("index", Compressor),
        ("index_query", Matrix),
        ("index_weights", Matrix),
        ("query_norm", c_void_p),
        ("head_norm", c_void_p),
        ("key_norm", c_void_p),
        ("sinks", c_void_p),
        ("chosen", c_void_p),
        ("cache", c_void_p),
        ("cache_slots", c_int64),
        ("cache_dim", c_int64),
        ("heads", c_int64),
        ("dim", c_int64),
        ("rotary_dim", c_int64),
        ("num_groups", c_int64),
        ("window", c_int64),
        ("period", c_int64),
        ("top_k", c_int64),
        ("index_heads", c_int64),
        ("overlaps", c_int32),
        ("chooses", c_int32),
        ("rope", c_int32),
        ("group", c_int32),
        ("rope_kind", c_int32),
        ("cache_format", c_int32),
        ("query_epsilon", c_float),
        ("head_epsilon", c_float),
        ("key_epsilon", c_float),
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
        ("dilation", c_int32),
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
        ("has_sigmoid_gates", c_int32),
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


class NgramEmbeddings(Structure):
    """Embeddings of the last tokens together, which are added to the rows of a residual stream."""

    _fields_ = [
        ("table", Matrix),
        ("key", Matrix),
        ("value", Matrix),
        ("convolution", Convolution),
        ("key_norm", c_void_p),
        ("stream_norm", c_void_p),
        ("value_norm", c_void_p),
        ("multipliers", c_void_p),
        ("sizes", c_void_p),
        ("offsets", c_void_p),
        ("states", c_void_p),
        ("num_streams", c_int64),
        ("most", c_int64),
        ("heads", c_int64),
        ("end", c_int32),
        ("epsilon", c_float),
    ]
