"""An upper bound of the memory for the tensors of a step, from the model's shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from server.model.attention.kv_cache import KVGroup
from server.model.layer_settings import layer_values
from server.model.recurrent.states import StateShapes

FLOAT = 4  # bytes of a float32
CHOICE_BYTES = 8  # an expert's index and its weight
NATIVE_GROWTH = 1.25  # ``Buffer::reserve`` of the native engine allocates so much more than requested
WORKSPACE_GROWTH = 1.5  # ``blocks.workspace`` allocates so much more, too
LOGIT_COPIES = 3  # logits, log probabilities, and the sampler's copy
TORCH_COPIES = 4  # copies of a layer's input and output: torch makes a new tensor at each operation
RECURRENT_COPIES = 8  # a recurrent layer's row, its results, and what is made of the row in between, by channels
CACHE_BLOCK = 16  # tokens of a block in the native kernels
INDEX_SCORE_BYTES = 20 << 20  # of the keys of some tokens at a time, by an indexer
COMPRESSED = "compress_rates"  # setting of models with compressed keys
SHARED = "shared"  # kind of layers that attend to the keys that the indexer of an earlier layer chose
LEAST_BYTES = 4 << 20  # Python objects, block tables, masks
GRAPH_LAUNCHES, LAUNCH_BYTES = 20, 4 << 10  # of a layer in a CUDA graph, and bytes of each; estimated, never measured


@dataclass(frozen=True)
class StepShape:
    """Sizes of a model that decide the memory of its steps; counts of values per token unless noted."""

    hidden: int
    queries: int  # query values of the widest attention layer
    keys: int  # key values of the widest attention layer; its values are as many
    absorbed: int  # query values of the widest layer with latents, which are kept beside those of their heads
    recurrent: int  # channels of the widest recurrent or convolution layer
    dense: int  # intermediate size of the widest dense feed-forward or shared expert
    expert: int  # intermediate size of the widest routed expert
    num_experts: int  # experts of the layer with the most
    num_routed: int  # layers with experts
    top_k: int
    vocabulary: int
    itemsize: int  # bytes of a value, in torch
    has_native: bool  # native kernels run layers, or parts of them
    has_modules: bool  # modules of transformers do
    indexer: int = 0  # values of an indexer: its queries, its key, the heads' weights, and the keys that it chooses
    streams: int = 0  # rows of the residual stream, where it has several
    stream_rank: int = 0  # of the gates of these rows, if there are such
    ngrams: int = 0  # values of embeddings of n-grams
    kept: int = 0  # values that layers keep, or leave to others, while other steps of a pass run

    @classmethod
    def of(
        cls,
        config: Any,
        groups: Sequence[KVGroup],
        num_experts: int,
        *,
        num_routed: int,
        top_k: int,
        itemsize: int,
        has_native: bool,
        has_modules: bool,
        states: StateShapes,
    ) -> StepShape:
        """Return the step shape of a transformers model.

        Args:
            config: the model's text config.
            groups: KV cache groups of its attention layers.
            num_experts: of the layer with the most.
            num_routed: layers with experts.
            top_k: experts a token.
            itemsize: bytes of a value, in torch.
            has_native: whether native kernels run layers, or parts of them.
            has_modules: whether modules of transformers do.
            states: of one sequence in recurrent layers.
        """
        hidden, heads = int(config.hidden_size), _largest(config, "num_attention_heads") or 1
        layers = [shape for group in groups for shape in group.shapes.values()]
        dense = _largest(config, "intermediate_size", "shared_expert_intermediate_size", "ffn_dim", "d_ff") or hidden
        index_heads = _largest(config, "index_n_heads", "indexer_n_heads")
        index_dim = _largest(config, "index_head_dim", "indexer_head_dim")
        latent_groups = [group for group in groups if any(shape.is_latent for shape in group.shapes.values())]
        block_keys = _largest(config, "index_topk_blocks") * _largest(config, "index_block_size")
        window = max((group.window or 0 for group in latent_groups), default=0)
        has_pools = _largest(config, "index_kpool") > 0  # a gate beside each value of a key
        pool_keys = _largest(config, "indexer_budget") + _largest(config, "indexer_compress_ratio")
        chosen = index_heads * block_keys // CACHE_BLOCK + _largest(config, "index_topk") + pool_keys + window
        head_dim = max((shape.dim for shape in layers), default=hidden // heads)
        absorbed = max((shape.dim for shape in layers if shape.is_latent), default=0)
        streams = _largest(config, "hc_mult", "hc_count")
        kept = streams * (1 + streams)  # weights of the rows of the residual stream
        if SHARED in layer_values(config, "indexer_types"):
            kept += _largest(config, "index_topk") + CACHE_BLOCK
        if hasattr(config, COMPRESSED) and not has_modules:  # rows of the cache also have what is compressed
            head_dim, absorbed = _largest(config, "head_dim") or head_dim, 0
        return cls(
            hidden=hidden,
            queries=heads * head_dim,
            absorbed=heads * absorbed,
            recurrent=max((_channels(shape.shape) for shape in states.values()), default=0),
            keys=max((shape.kv_heads * shape.dim for shape in layers), default=hidden),
            dense=dense,
            expert=_largest(config, "moe_intermediate_size", "expert_ffn_hidden_size") or dense,
            num_experts=num_experts,
            num_routed=num_routed,
            top_k=top_k,
            vocabulary=int(config.vocab_size),
            itemsize=itemsize,
            has_native=has_native,
            has_modules=has_modules,
            indexer=index_heads * (index_dim + 1) + (1 + has_pools) * index_dim + chosen,
            streams=streams,
            kept=kept,
            stream_rank=_largest(config, "hc_lowrank"),
            ngrams=_largest(config, "ple_embed_dim") if getattr(config, "ple_layer_ids", None) else 0,
        )


def pass_token_bytes(shape: StepShape) -> int:
    """Return the bytes that a pass of prompts holds of each token: its rows, the input of its experts, and its choices.

    Choices of all layers are held twice: for the kernels, and for the record of the step.
    """
    rows = (shape.streams + 2) * shape.hidden
    return (rows + shape.kept) * FLOAT + 2 * shape.num_routed * shape.top_k * CHOICE_BYTES


def step_bytes(shape: StepShape, num_tokens: int, num_logits: int) -> int:
    """Return the maximum bytes that a step uses beside weights and KV cache.

    The bound is the sum of the tensors that are alive at the same time in one layer, the logits, and the sampler's
    copies of them. Native kernels keep their buffers from step to step and never free them.

    Args:
        num_tokens: tokens of the step.
        num_logits: rows of logits that the step returns.
    """
    layer = (_native_bytes(shape) if shape.has_native else 0) + (_torch_bytes(shape) if shape.has_modules else 0)
    index_scores = INDEX_SCORE_BYTES if shape.indexer and shape.has_native else 0
    return LEAST_BYTES + index_scores + num_tokens * layer + num_logits * shape.vocabulary * FLOAT * LOGIT_COPIES


def graph_bytes(shape: StepShape, num_layers: int, num_sequences: int, num_graphs: int) -> int:
    """Return the maximum bytes that the CUDA graphs of decode steps take on a device.

    All share the tensors of the largest step. Each keeps its launches, and the choices of its layers' routers.

    Args:
        num_sequences: of the largest step.
        num_graphs: kinds of steps.
    """
    choices = shape.num_routed * num_sequences * shape.top_k * CHOICE_BYTES
    launches = num_layers * GRAPH_LAUNCHES * LAUNCH_BYTES
    return step_bytes(shape, num_sequences, num_sequences) + num_graphs * (choices + launches)


def _native_bytes(shape: StepShape) -> int:
    """Return bytes per token in ``blocks.workspace`` and in the buffers of ``kernels/native/src/context.h``."""
    panel = shape.itemsize  # maximum bytes of a value in the inputs of matrix products
    streams = shape.streams * shape.hidden * FLOAT  # the rows, and as many normed ones
    workspace = streams + 2 * shape.hidden * FLOAT + shape.num_routed * shape.top_k * CHOICE_BYTES
    attention = (shape.hidden + shape.queries) * panel  # rows
    heads_and_attended = 2 * shape.queries + shape.absorbed + 2 * shape.keys
    attention += (heads_and_attended + shape.num_experts + shape.indexer) * FLOAT  # and logits
    attention += RECURRENT_COPIES * shape.recurrent * FLOAT
    # Input rows, results of the first matrices, inputs of the second, and results.
    routed = shape.top_k * ((shape.hidden + shape.expert) * panel + (2 * shape.expert + shape.hidden) * FLOAT)
    dense = (shape.hidden + shape.dense) * panel + (2 * shape.dense + shape.hidden) * FLOAT
    mixing = streams + shape.streams * (3 + 2 * shape.streams) * FLOAT  # and weights of the rows
    if shape.stream_rank:  # the rows of products, and gates
        mixing += streams + shape.streams * shape.hidden * panel + shape.stream_rank * (FLOAT + panel)
    if shape.ngrams:  # embeddings, their values and keys, and results of the convolution
        mixing += shape.ngrams * (FLOAT + panel) + shape.hidden * FLOAT + 2 * streams
    return int(WORKSPACE_GROWTH * workspace + NATIVE_GROWTH * (mixing + attention + max(routed, dense)))


def _torch_bytes(shape: StepShape) -> int:
    """Return bytes per token in the widest layer: the residual stream with attention, or with experts."""
    attention = 2 * shape.queries + 2 * shape.keys
    routed = shape.top_k * (2 * shape.hidden + 3 * shape.expert)
    widest = max(attention, routed + shape.num_experts, 3 * shape.dense)
    in_float = shape.queries + shape.hidden  # attention sums over several spans, and norms
    return TORCH_COPIES * shape.itemsize * (2 * max(1, shape.streams) * shape.hidden + widest) + 2 * FLOAT * in_float


def _channels(state: Sequence[int]) -> int:
    """Return the values of a token that a state is made of: channels of a convolution, or values of all heads."""
    return math.prod(state) // max(1, min(state[-2:]))


def _largest(config: Any, *names: str) -> int:
    """Return the largest of some settings in any layer. 0 for none."""
    return max((value for value in layer_values(config, *names) if isinstance(value, int)), default=0)
