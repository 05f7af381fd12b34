"""LFM2-8B-A1B and LFM2-24B-A2B: short convolutions, some layers of attention, and experts behind the first layers."""

from __future__ import annotations

from typing import Any

from server.model.declarations import (
    Declaration,
    Experts,
    GroupedAttention,
    Layer,
    Mlp,
    Rotary,
    Router,
    RouterKind,
    ShortConvolution,
    head_scaling,
)
from server.model.declarations.gguf import (
    SIGMOID,
    Architecture,
    GgufFile,
    Place,
    Values,
    conversions,
    decoder_values,
    expert_values,
    linears,
    numbers_by_layer,
    one_of,
    read,
)


def declare(config: Any) -> Declaration:
    mixers = {
        "conv": ShortConvolution("conv"),
        "full_attention": GroupedAttention("self_attn", scaling=head_scaling(config)),
    }
    router = Router(
        module="feed_forward.gate",
        weight="feed_forward.gate.weight",
        correction="feed_forward.expert_bias" if config.use_expert_bias else None,
        kind=RouterKind.SIGMOID if config.use_expert_bias else RouterKind.TOP_SIGMOID,  # which are the same without it
        top_k=config.num_experts_per_tok,
        is_normalised=config.norm_topk_prob,
        scale=config.routed_scaling_factor,
    )
    experts = Experts(module="feed_forward.experts", router=router)
    layers = [
        Layer(
            mixer=mixers[kind],
            experts=None if index < config.num_dense_layers else experts,
            mlp=Mlp(module="feed_forward") if index < config.num_dense_layers else None,
            input_norm="operator_norm",
            inner_norm="ffn_norm",
        )
        for index, kind in enumerate(config.layer_types)
    ]
    return Declaration(layers=layers, rotary=[Rotary(module="pos_emb")])


MODEL = linears({"token_embd": "model.embed_tokens", "output": "lm_head"}, kinds=("weight",)) | {
    name: Place("model.embedding_norm.weight") for name in ("token_embd_norm.weight", "output_norm.weight")
}
PLACES = {
    **linears(
        {
            "attn_norm": "operator_norm",
            "ffn_norm": "ffn_norm",
            "attn_q": "self_attn.q_proj",
            "attn_k": "self_attn.k_proj",
            "attn_v": "self_attn.v_proj",
            "attn_output": "self_attn.out_proj",
            "attn_q_norm": "self_attn.q_layernorm",
            "attn_k_norm": "self_attn.k_layernorm",
            "shortconv.in_proj": "conv.in_proj",
            "shortconv.out_proj": "conv.out_proj",
            "ffn_gate_inp": "feed_forward.gate",
            "ffn_gate": "feed_forward.w1",
            "ffn_up": "feed_forward.w3",
            "ffn_down": "feed_forward.w2",
        },
        kinds=("weight",),
    ),
    "shortconv.conv.weight": Place("conv.conv.weight", conversions.with_channel),
    "exp_probs_b.bias": Place("feed_forward.expert_bias"),
}


def gguf_config(file: GgufFile) -> Values:
    """``lfm2moe``: short convolutions, and attention in the layers that have heads of keys."""
    values = decoder_values(file)
    heads = numbers_by_layer(file, "attention.head_count_kv", values["num_hidden_layers"])
    kinds = ("conv", "full_attention")
    return (
        values
        | expert_values(file)
        | {
            "model_type": "lfm2_moe",
            "norm_eps": values["rms_norm_eps"],
            "conv_L_cache": file.integer("shortconv.l_cache"),
            "conv_bias": False,
            "num_dense_layers": file.integer("leading_dense_block_count"),
            "layer_types": [kinds[count > 0] for count in heads],
            "norm_topk_prob": bool(file.value("expert_weights_norm", True)),
            "routed_scaling_factor": file.number("expert_weights_scale", 1.0) or 1.0,
            "use_expert_bias": any(name.endswith("exp_probs_b.bias") for name in file.tensors),
        }
    )


GGUF = Architecture(
    "lfm2moe",
    gguf_config,
    PLACES,
    keys={**read("shortconv.l_cache"), "expert_gating_func": one_of(SIGMOID)},
    experts="feed_forward.experts",
    model=MODEL,
)
