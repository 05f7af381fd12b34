"""Written by `src/interface.py` from the C++ headers named here, whose comments describe what stands here."""

from __future__ import annotations

from ctypes import Array, Structure, c_float, c_int32, c_int64, c_void_p
from enum import IntEnum

from server.kernels.native.structures.experts import ExpertShape
from server.kernels.native.structures.fields import Address, field, structure
from server.kernels.native.structures.matrices import Matrix


# layers/step.h
@structure
class ExpertSets(Structure):
    set_of_sequence: Address = field(c_void_p)
    routers: Address = field(c_void_p)
    places: Address = field(c_void_p)
    numbers: Address = field(c_void_p)
    num_sets: int = field(c_int64)
    width: int = field(c_int64)


@structure
class StepPredictions(Structure):
    chosen: Address = field(c_void_p)
    parts: Address = field(c_void_p)
    num_parts: int = field(c_int64)


@structure
class StepSequence(Structure):
    first_row: int = field(c_int32)
    num_tokens: int = field(c_int32)
    first_position: int = field(c_int32)
    first_block: int = field(c_int32)
    state_from: int = field(c_int32)
    state_to: int = field(c_int32)


@structure
class StepCall(Structure):
    hidden: Address = field(c_void_p)
    sequences: Address = field(c_void_p)
    block_tables: Address = field(c_void_p)
    cosines: Address = field(c_void_p)
    sines: Address = field(c_void_p)
    normed: Address = field(c_void_p)
    chosen: Address = field(c_void_p)
    weights: Address = field(c_void_p)
    slots: Address = field(c_void_p)
    counts: Address = field(c_void_p)
    sets: Address = field(c_void_p)
    tokens: int = field(c_int64)
    num_sequences: int = field(c_int64)
    hidden_size: int = field(c_int64)
    most_top_k: int = field(c_int64)
    most_experts: int = field(c_int64)
    predictions: Address = field(c_void_p)
    lora: Address = field(c_void_p)
    query_scales: Address = field(c_void_p)
    streams: Address = field(c_void_p)
    token_ids: Address = field(c_void_p)
    deferred: Address = field(c_void_p)
    chosen_keys: Address = field(c_void_p)
    projected: Address = field(c_void_p)
    shares: Address = field(c_void_p)
    stream_weights: Address = field(c_void_p)
    router_rows: Address = field(c_void_p)
    newest: Address = field(c_void_p)
    has_own_angles: int = field(c_int32)
    is_exact: int = field(c_int32)


# layers/gated_streams.h
@structure
class StreamGates(Structure):
    down: Matrix = field(Matrix)
    up: Matrix = field(Matrix)


# layers/norm.h
class NormKind(IntEnum):
    NONE = 0
    RMS = 1
    LAYER = 2
    INPUT = 3
    AFFINE = 4
    READY = 5


@structure
class Norm(Structure):
    weight: Address = field(c_void_p)
    bias: Address = field(c_void_p)
    epsilon: float = field(c_float)
    kind: int = field(c_int32)


# layers/streams.h
@structure
class BlockAttention(Structure):
    queries: Address = field(c_void_p)
    norms: Array[Norm] = field(Norm * 2)
    norm_epsilon: float = field(c_float)
    scaling: float = field(c_float)
    num_queries: int = field(c_int32)
    num_blocks: int = field(c_int32)
    starts_block: int = field(c_int32)


@structure
class StreamMix(Structure):
    logits: Matrix = field(Matrix)
    bias: Address = field(c_void_p)
    norm: Address = field(c_void_p)
    gates: Address = field(c_void_p)
    blocks: Address = field(c_void_p)
    norm_epsilon: float = field(c_float)
    epsilon: float = field(c_float)
    result_epsilon: float = field(c_float)
    magnitude: float = field(c_float)
    scales: Array[c_float] = field(c_float * 3)
    num_streams: int = field(c_int32)
    iterations: int = field(c_int32)
    is_last: int = field(c_int32)


# layers/head.h
@structure
class HeadCall(Structure):
    matrix: Matrix = field(Matrix)
    bias: Address = field(c_void_p)
    norm: Norm = field(Norm)
    streams: Address = field(c_void_p)
    hidden: Address = field(c_void_p)
    rows: Address = field(c_void_p)
    normed: Address = field(c_void_p)
    logits: Address = field(c_void_p)
    num_rows: int = field(c_int64)
    num_logits: int = field(c_int64)
    hidden_size: int = field(c_int64)
    vocabulary: int = field(c_int64)
    scale: float = field(c_float)
    softcap: float = field(c_float)
    is_exact: int = field(c_int32)
    lora: Address = field(c_void_p)


# layers/gated_norm.h
@structure
class NormGate(Structure):
    down: Matrix = field(Matrix)
    up: Matrix = field(Matrix)


# layers/layer.h
@structure
class ResidualGate(Structure):
    kept: Address = field(c_void_p)
    added: Address = field(c_void_p)
    bias: Address = field(c_void_p)


class FeedForwardKind(IntEnum):
    MLP = 0
    EXPERTS = 1
    NONE = 2


@structure
class LayerSpec(Structure):
    input_norm: Norm = field(Norm)
    mixer_norm: Norm = field(Norm)
    inner_norm: Norm = field(Norm)
    output_norm: Norm = field(Norm)
    input_gate: Address = field(c_void_p)
    inner_gate: Address = field(c_void_p)
    mixer_streams: Address = field(c_void_p)
    inner_streams: Address = field(c_void_p)
    ngrams: Address = field(c_void_p)
    mixer_convolution: Address = field(c_void_p)
    inner_convolution: Address = field(c_void_p)
    mixer_residual_gate: Address = field(c_void_p)
    inner_residual_gate: Address = field(c_void_p)
    mixer: Address = field(c_void_p)
    feed_forward: Address = field(c_void_p)
    next_mixture: Address = field(c_void_p)
    mixer_kind: int = field(c_int32)
    feed_forward_kind: int = field(c_int32)
    index: int = field(c_int32)
    is_parallel: int = field(c_int32)
    residual_scale: float = field(c_float)
    output_scale: float = field(c_float)
    mixer_residual: float = field(c_float)
    inner_residual: float = field(c_float)
    adds_deferred: int = field(c_int32)


# layers/router.h
class RouterKind(IntEnum):
    SOFTMAX_FIRST = 0
    TOP_FIRST = 1
    SIGMOID = 2
    TOP_SIGMOID = 3
    SPARSE_MIXER = 4
    SQRT_SOFTPLUS = 5


@structure
class RouterMlp(Structure):
    down: Matrix = field(Matrix)
    first: Matrix = field(Matrix)
    second: Matrix = field(Matrix)
    down_bias: Address = field(c_void_p)
    first_bias: Address = field(c_void_p)
    second_bias: Address = field(c_void_p)
    carried: Address = field(c_void_p)
    norm: Norm = field(Norm)


@structure
class Router(Structure):
    matrix: Matrix = field(Matrix)
    bias: Address = field(c_void_p)
    correction: Address = field(c_void_p)
    expert_scales: Address = field(c_void_p)
    kind: int = field(c_int32)
    top_k: int = field(c_int32)
    num_groups: int = field(c_int32)
    top_groups: int = field(c_int32)
    is_normalised: int = field(c_int32)
    scale: float = field(c_float)
    near: float = field(c_float)
    is_by_best: int = field(c_int32)
    table: Address = field(c_void_p)
    table_rows: int = field(c_int64)
    num_shared: int = field(c_int64)
    logits_scale: float = field(c_float)
    num_skips: int = field(c_int32)
    mlp: Address = field(c_void_p)


# layers/mixture.h
@structure
class Mlp(Structure):
    shape: ExpertShape = field(ExpertShape)
    weighting: Matrix = field(Matrix)
    input_norm: Norm = field(Norm)
    output_norm: Norm = field(Norm)
    scale: float = field(c_float)


@structure
class Mixture(Structure):
    router: Router = field(Router)
    experts: ExpertShape = field(ExpertShape)
    shared: Mlp = field(Mlp)
    router_norm: Norm = field(Norm)
    output_norm: Norm = field(Norm)
    result_norm: Norm = field(Norm)
    input_projection: Matrix = field(Matrix)
    output_projection: Matrix = field(Matrix)
    projected_norm: Norm = field(Norm)
    num_experts: int = field(c_int32)
    has_shared: int = field(c_int32)
    experts_scale: float = field(c_float)
    scales_input: int = field(c_int32)
    num_identities: int = field(c_int32)
    is_deferred: int = field(c_int32)
    shared_bytes: int = field(c_int64)
