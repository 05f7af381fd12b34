"""Phi-3.5-MoE: grouped-query attention, and experts that a sparse mixer chooses."""

from __future__ import annotations

from typing import Any

from server.model.declarations import Declaration, Experts, GroupedAttention, Layer, Router, RouterKind, head_scaling
from server.model.declarations.gguf import (
    ATTENTION,
    Architecture,
    GgufFile,
    Values,
    decoder_values,
    frequency_factors,
    given_factors,
    linears,
    local_experts,
    read,
)


def declare(config: Any) -> Declaration:
    attention = GroupedAttention("self_attn", scaling=head_scaling(config), window=config.sliding_window or 0)
    router = Router(
        module="mlp.router",
        weight="mlp.router.weight",
        kind=RouterKind.SPARSE_MIXER,
        top_k=config.num_experts_per_tok,
        is_normalised=False,
        near=2 * config.router_jitter_noise,
    )
    layer = Layer(mixer=attention, experts=Experts(router=router))
    return Declaration(layers=[layer] * config.num_hidden_layers)


MODEL = linears({"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"})
PLACES = {
    **linears({"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "ffn_gate_inp": "mlp.router"}),
    **ATTENTION,
}


def gguf_config(file: GgufFile) -> Values:
    """``phimoe``: norms with biases, and rotary positions with factors for short and for long sequences."""
    values = decoder_values(file)
    short, long = (frequency_factors(file, f"rope_factors_{kind}.weight") for kind in ("short", "long"))
    if short is not None and long is not None:
        rope = given_factors(file, short, long)
        scale = rope.pop("attention_factor")
        values["rope_parameters"] |= rope | {"short_mscale": scale, "long_mscale": scale}
    return values | {
        "model_type": "phimoe",
        **local_experts(file),
        "sliding_window": file.integer("attention.sliding_window", 0) or None,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "lm_head_bias": "output.bias" in file.tensors,
    }


GGUF = Architecture(
    "phimoe", gguf_config, PLACES, keys=read("attention.sliding_window", "rope.scaling.attn_factor"), model=MODEL
)
