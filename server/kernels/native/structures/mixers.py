"""Written by `src/interface.py` from the C++ headers named here, whose comments describe what stands here."""

from __future__ import annotations

from ctypes import Array, Structure, c_float, c_int32, c_int64, c_void_p
from enum import IntEnum

from server.kernels.native.structures.fields import Address, field, structure
from server.kernels.native.structures.layers import Norm
from server.kernels.native.structures.matrices import Matrix


# layers/convolution.h
@structure
class Convolution(Structure):
    weight: Address = field(c_void_p)
    bias: Address = field(c_void_p)
    states: Address = field(c_void_p)
    width: int = field(c_int64)
    channels: int = field(c_int64)
    has_silu: int = field(c_int32)
    dilation: int = field(c_int32)


# layers/ngram_embeddings.h
@structure
class NgramEmbeddings(Structure):
    table: Matrix = field(Matrix)
    key: Matrix = field(Matrix)
    value: Matrix = field(Matrix)
    convolution: Convolution = field(Convolution)
    key_norm: Address = field(c_void_p)
    stream_norm: Address = field(c_void_p)
    value_norm: Address = field(c_void_p)
    multipliers: Address = field(c_void_p)
    sizes: Address = field(c_void_p)
    offsets: Address = field(c_void_p)
    states: Address = field(c_void_p)
    num_streams: int = field(c_int64)
    most: int = field(c_int64)
    heads: int = field(c_int64)
    end: int = field(c_int32)
    epsilon: float = field(c_float)


# layers/layer.h
class MixerKind(IntEnum):
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


# model/blocks/grouped_attention/key_block_indexer.h
class RopeKind(IntEnum):
    NONE = 0
    HALVES = 1
    INTERLEAVED = 2


@structure
class KeyBlockIndexer(Structure):
    query: Matrix = field(Matrix)
    key: Matrix = field(Matrix)
    query_norm: Norm = field(Norm)
    key_norm: Norm = field(Norm)
    cache: Address = field(c_void_p)
    chosen: Address = field(c_void_p)
    heads: int = field(c_int64)
    dim: int = field(c_int64)
    block_size: int = field(c_int64)
    top_k: int = field(c_int64)
    num_local: int = field(c_int64)
    rope_kind: int = field(c_int32)
    unused: int = field(c_int32)


# model/blocks/grouped_attention/head_experts.h
@structure
class HeadExperts(Structure):
    router: Matrix = field(Matrix)
    query: Matrix = field(Matrix)
    output: Matrix = field(Matrix)
    bias: Address = field(c_void_p)
    num_experts: int = field(c_int64)
    top_k: int = field(c_int64)


# model/blocks/grouped_attention/head_mixing.h
@structure
class HeadMixing(Structure):
    channels: Convolution = field(Convolution)
    of_heads: Matrix = field(Matrix)
    bias: Address = field(c_void_p)
    heads: int = field(c_int64)
    kv_heads: int = field(c_int64)
    taps: int = field(c_int64)


# model/blocks/grouped_attention/pool_indexer.h
@structure
class PoolIndexer(Structure):
    query: Matrix = field(Matrix)
    key: Matrix = field(Matrix)
    query_norm: Norm = field(Norm)
    key_norm: Norm = field(Norm)
    cache: Address = field(c_void_p)
    chosen: Address = field(c_void_p)
    heads: int = field(c_int64)
    dim: int = field(c_int64)
    pool: int = field(c_int64)
    top_k: int = field(c_int64)
    rope_kind: int = field(c_int32)
    is_given: int = field(c_int32)


# model/blocks/grouped_attention/relative_biases.h
@structure
class RelativeBiases(Structure):
    weights: Matrix = field(Matrix)
    profiles: Address = field(c_void_p)
    num_profiles: int = field(c_int64)
    extent: int = field(c_int64)
    scales: Address = field(c_void_p)
    limit: float = field(c_float)


# model/blocks/grouped_attention/grouped_attention.h
class GateKind(IntEnum):
    NONE = 0
    SIGMOID = 1
    SOFTPLUS = 2


@structure
class GroupedAttention(Structure):
    query: Matrix = field(Matrix)
    key: Matrix = field(Matrix)
    output: Matrix = field(Matrix)
    value: Matrix = field(Matrix)
    delayed: Matrix = field(Matrix)
    gate: Matrix = field(Matrix)
    sink: Matrix = field(Matrix)
    key_taps: Matrix = field(Matrix)
    value_taps: Matrix = field(Matrix)
    query_bias: Address = field(c_void_p)
    key_bias: Address = field(c_void_p)
    value_bias: Address = field(c_void_p)
    output_bias: Address = field(c_void_p)
    gate_bias: Address = field(c_void_p)
    query_norm: Address = field(c_void_p)
    key_norm: Address = field(c_void_p)
    value_norm: Address = field(c_void_p)
    result_norm: Address = field(c_void_p)
    sinks: Address = field(c_void_p)
    query_scales: Address = field(c_void_p)
    key_scales: Address = field(c_void_p)
    indexer: Address = field(c_void_p)
    pools: Address = field(c_void_p)
    relative: Address = field(c_void_p)
    experts: Address = field(c_void_p)
    key_convolution: Address = field(c_void_p)
    value_convolution: Address = field(c_void_p)
    mixing: Address = field(c_void_p)
    key_cache: Address = field(c_void_p)
    value_cache: Address = field(c_void_p)
    cache_slots: int = field(c_int64)
    cache_dim: int = field(c_int64)
    heads: int = field(c_int64)
    kv_heads: int = field(c_int64)
    key_dim: int = field(c_int64)
    value_dim: int = field(c_int64)
    rotary_dim: int = field(c_int64)
    window: int = field(c_int64)
    is_chunked: int = field(c_int32)
    norms_together: int = field(c_int32)
    norms_rotated: int = field(c_int32)
    scales_queries: int = field(c_int32)
    looks_ahead: int = field(c_int32)
    has_gates_in_query: int = field(c_int32)
    has_keys_in_query: int = field(c_int32)
    has_own_inputs: int = field(c_int32)
    rope: int = field(c_int32)
    group: int = field(c_int32)
    rope_kind: int = field(c_int32)
    gate_kind: int = field(c_int32)
    cache_format: int = field(c_int32)
    head_norm_epsilon: float = field(c_float)
    value_scale: float = field(c_float)
    scaling: float = field(c_float)
    softcap: float = field(c_float)
    norm_limit: float = field(c_float)
    taps_scale: float = field(c_float)
    clip: float = field(c_float)


# model/blocks/compressed_attention/compressed_attention.h
@structure
class Compressor(Structure):
    key: Matrix = field(Matrix)
    gate: Matrix = field(Matrix)
    bias: Address = field(c_void_p)
    norm: Address = field(c_void_p)
    dim: int = field(c_int64)
    epsilon: float = field(c_float)
    unused: int = field(c_int32)


@structure
class CompressedAttention(Structure):
    query_down: Matrix = field(Matrix)
    query: Matrix = field(Matrix)
    key: Matrix = field(Matrix)
    groups: Matrix = field(Matrix)
    output: Matrix = field(Matrix)
    keys: Compressor = field(Compressor)
    index: Compressor = field(Compressor)
    index_query: Matrix = field(Matrix)
    index_weights: Matrix = field(Matrix)
    query_norm: Address = field(c_void_p)
    head_norm: Address = field(c_void_p)
    key_norm: Address = field(c_void_p)
    sinks: Address = field(c_void_p)
    chosen: Address = field(c_void_p)
    cache: Address = field(c_void_p)
    cache_slots: int = field(c_int64)
    cache_dim: int = field(c_int64)
    heads: int = field(c_int64)
    dim: int = field(c_int64)
    rotary_dim: int = field(c_int64)
    num_groups: int = field(c_int64)
    window: int = field(c_int64)
    period: int = field(c_int64)
    top_k: int = field(c_int64)
    index_heads: int = field(c_int64)
    overlaps: int = field(c_int32)
    chooses: int = field(c_int32)
    rope: int = field(c_int32)
    group: int = field(c_int32)
    rope_kind: int = field(c_int32)
    cache_format: int = field(c_int32)
    query_epsilon: float = field(c_float)
    head_epsilon: float = field(c_float)
    key_epsilon: float = field(c_float)
    scaling: float = field(c_float)


# model/blocks/recurrent/projections.h
@structure
class Projections(Structure):
    inputs: Array[Matrix] = field(Matrix * 6)
    seconds: Array[Matrix] = field(Matrix * 6)
    biases: Array[c_void_p] = field(c_void_p * 6)
    output: Matrix = field(Matrix)
    output_bias: Address = field(c_void_p)
    places: Address = field(c_void_p)
    num_inputs: int = field(c_int64)


# model/blocks/gated_delta_net/gated_delta_net.h
@structure
class GatedDeltaNet(Structure):
    projections: Projections = field(Projections)
    convolution: Convolution = field(Convolution)
    decay: Address = field(c_void_p)
    decay_bias: Address = field(c_void_p)
    norm: Address = field(c_void_p)
    states: Address = field(c_void_p)
    key_heads: int = field(c_int64)
    value_heads: int = field(c_int64)
    key_dim: int = field(c_int64)
    value_dim: int = field(c_int64)
    norm_epsilon: float = field(c_float)
    has_sigmoid_gates: int = field(c_int32)


# model/blocks/kimi_delta_attention/kimi_delta_attention.h
@structure
class KimiDeltaAttention(Structure):
    projections: Projections = field(Projections)
    convolution: Convolution = field(Convolution)
    decay: Address = field(c_void_p)
    decay_bias: Address = field(c_void_p)
    norm: Address = field(c_void_p)
    states: Address = field(c_void_p)
    heads: int = field(c_int64)
    head_dim: int = field(c_int64)
    norm_epsilon: float = field(c_float)
    least_decay: float = field(c_float)


# model/blocks/latent_attention/head_scales.h
@structure
class HeadScales(Structure):
    scales: Address = field(c_void_p)
    offsets: Address = field(c_void_p)


# model/blocks/latent_attention/indexer.h
@structure
class Indexer(Structure):
    query: Matrix = field(Matrix)
    key: Matrix = field(Matrix)
    weights: Matrix = field(Matrix)
    pool_gate: Matrix = field(Matrix)
    pool_bias: Address = field(c_void_p)
    key_norm: Norm = field(Norm)
    query_input_norm: Norm = field(Norm)
    head_scales: HeadScales = field(HeadScales)
    chosen: Address = field(c_void_p)
    heads: int = field(c_int64)
    dim: int = field(c_int64)
    top_k: int = field(c_int64)
    rope_kind: int = field(c_int32)
    chooses: int = field(c_int32)
    is_window: int = field(c_int32)
    takes_hidden: int = field(c_int32)
    rotates_last: int = field(c_int32)
    pool: int = field(c_int32)


# model/blocks/latent_attention/latent_attention.h
@structure
class LatentAttention(Structure):
    query_down: Matrix = field(Matrix)
    query: Matrix = field(Matrix)
    latent: Matrix = field(Matrix)
    to_keys: Matrix = field(Matrix)
    to_values: Matrix = field(Matrix)
    output: Matrix = field(Matrix)
    gate: Matrix = field(Matrix)
    query_down_bias: Address = field(c_void_p)
    query_bias: Address = field(c_void_p)
    latent_bias: Address = field(c_void_p)
    output_bias: Address = field(c_void_p)
    gate_bias: Address = field(c_void_p)
    query_norm: Address = field(c_void_p)
    latent_norm: Address = field(c_void_p)
    rope_norm: Address = field(c_void_p)
    sinks: Address = field(c_void_p)
    head_scales: HeadScales = field(HeadScales)
    indexer: Address = field(c_void_p)
    cache: Address = field(c_void_p)
    source: Address = field(c_void_p)
    source_dim: int = field(c_int64)
    cache_slots: int = field(c_int64)
    cache_dim: int = field(c_int64)
    heads: int = field(c_int64)
    rank: int = field(c_int64)
    nope_dim: int = field(c_int64)
    rope_dim: int = field(c_int64)
    rotary_dim: int = field(c_int64)
    value_dim: int = field(c_int64)
    rope: int = field(c_int32)
    group: int = field(c_int32)
    scales_queries: int = field(c_int32)
    takes_raw: int = field(c_int32)
    has_gates_in_query: int = field(c_int32)
    rope_kind: int = field(c_int32)
    cache_format: int = field(c_int32)
    query_norm_epsilon: float = field(c_float)
    latent_norm_epsilon: float = field(c_float)
    scaling: float = field(c_float)


# model/blocks/lightning_attention/lightning_attention.h
@structure
class LightningAttention(Structure):
    projections: Projections = field(Projections)
    decay: Address = field(c_void_p)
    norm: Address = field(c_void_p)
    states: Address = field(c_void_p)
    heads: int = field(c_int64)
    head_dim: int = field(c_int64)
    norm_epsilon: float = field(c_float)
    activation: int = field(c_int32)


# model/blocks/mamba1/mamba1.h
@structure
class Mamba1(Structure):
    projections: Projections = field(Projections)
    convolution: Convolution = field(Convolution)
    select: Matrix = field(Matrix)
    to_steps: Matrix = field(Matrix)
    step_norm: Address = field(c_void_p)
    key_norm: Address = field(c_void_p)
    query_norm: Address = field(c_void_p)
    step_bias: Address = field(c_void_p)
    decay: Address = field(c_void_p)
    direct: Address = field(c_void_p)
    states: Address = field(c_void_p)
    state_size: int = field(c_int64)
    norm_epsilon: float = field(c_float)
    unused: int = field(c_int32)


# model/blocks/mamba2/mamba2.h
@structure
class Mamba2(Structure):
    projections: Projections = field(Projections)
    convolution: Convolution = field(Convolution)
    decay: Address = field(c_void_p)
    step_bias: Address = field(c_void_p)
    direct: Address = field(c_void_p)
    norm: Address = field(c_void_p)
    states: Address = field(c_void_p)
    heads: int = field(c_int64)
    groups: int = field(c_int64)
    head_dim: int = field(c_int64)
    state_size: int = field(c_int64)
    norm_size: int = field(c_int64)
    norm_epsilon: float = field(c_float)
    least_step: float = field(c_float)
    longest_step: float = field(c_float)
    unused: int = field(c_int32)


# model/blocks/short_convolution/short_convolution.h
@structure
class ShortConvolution(Structure):
    projections: Projections = field(Projections)
    convolution: Convolution = field(Convolution)
