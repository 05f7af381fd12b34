"""Llama 4 Scout and Maverick: attention within chunks, layers without positions that see all, and a shared expert."""

from __future__ import annotations

from typing import Any

from server.model.declarations import (
    Declaration,
    Experts,
    GroupedAttention,
    Layer,
    Mlp,
    PairAngles,
    QueryScale,
    RopeKind,
    Rotary,
    Router,
    RouterKind,
    head_scaling,
)
from server.model.declarations.gguf import (
    ATTENTION,
    NORMS,
    SAME_BASE,
    Architecture,
    GgufFile,
    Only,
    Values,
    decoder_values,
    expert_values,
    linears,
    pattern,
    read,
    shared_linears,
)


def declare(config: Any) -> Declaration:
    return Declaration(
        layers=[layer(config, index) for index in range(config.num_hidden_layers)],
        rotary=[Rotary(columns=PairAngles.ALL)],
    )


def layer(config: Any, index: int) -> Layer:
    has_positions, is_sparse = config.no_rope_layers[index], index in config.moe_layers
    is_chunked = config.layer_types[index] == "chunked_attention"
    is_scaled = config.attn_temperature_tuning and not has_positions
    attention = GroupedAttention(
        "self_attn",
        rope=RopeKind.INTERLEAVED if has_positions else RopeKind.NONE,
        scaling=head_scaling(config),
        window=config.attention_chunk_size if is_chunked else 0,
        is_chunked=is_chunked,
        query_scale=QueryScale.BY_STEPS if is_scaled else None,
    )
    router = Router(
        module="feed_forward.router",
        weight="feed_forward.router.weight",
        kind=RouterKind.TOP_SIGMOID,
        top_k=config.num_experts_per_tok,
        is_normalised=False,
        chooses=False,
    )
    return Layer(
        mixer=attention,
        experts=Experts(module="feed_forward.experts", router=router) if is_sparse else None,
        mlp=Mlp(module="feed_forward.shared_expert" if is_sparse else "feed_forward"),
    )


MAVERICK_EXPERTS = 128  # the Llama 4 with so many has no norms of queries and keys (llama4.cpp of llama.cpp)
PLACES = {
    **NORMS,
    **ATTENTION,
    **linears({"ffn_gate_inp": "feed_forward.router"}, ("weight",)),
    **linears({f"ffn_{kind}": f"feed_forward.{kind}_proj" for kind in ("gate", "up", "down")}, ("weight",)),
    **shared_linears("feed_forward.shared_expert"),
}


def gguf_config(file: GgufFile) -> Values:
    """``llama4``: chunks and rotary positions in three of four layers; files do not tell what is the same in all."""
    values, experts = decoder_values(file), expert_values(file)
    return values | {
        "model_type": "llama4_text",
        "intermediate_size": experts["moe_intermediate_size"],
        "intermediate_size_mlp": values["intermediate_size"],
        "num_local_experts": experts["num_experts"],
        "num_experts_per_tok": experts["num_experts_per_tok"],
        "interleave_moe_layer_step": file.integer("interleave_moe_layer_step"),
        "use_qk_norm": experts["num_experts"] != MAVERICK_EXPERTS,
    }


GGUF = Architecture(
    "llama4",
    gguf_config,
    PLACES,
    keys={
        **read("interleave_moe_layer_step"),
        "attention.sliding_window": Only("above 0", lambda _, value: type(value) is int and value > 0),
        "attention.sliding_window_pattern": pattern(4),
        "rope.freq_base_swa": SAME_BASE,
    },
    experts="feed_forward.experts",
)
