"""DeepSeek-V2, V2.5, V2-Lite and Coder-V2: latent attention, and experts that a softmax chooses."""

from __future__ import annotations

from typing import Any

from server.model.blocks.declaration import MixerDeclaration
from server.model.declarations import (
    Declaration,
    Experts,
    LatentAttention,
    Layer,
    Mlp,
    PairAngles,
    RopeKind,
    Rotary,
    Router,
    RouterKind,
    latent_scaling,
)
from server.model.declarations.gguf import (
    CORRECTION,
    DENSE,
    GROUPS,
    LATENT,
    NORMS,
    ROTATED_IN_PART,
    ROUTER,
    SIGMOID,
    Architecture,
    GgufFile,
    Values,
    decoder_values,
    expert_values,
    gating,
    one_of,
    read,
    shared_linears,
)


def declare(config: Any) -> Declaration:
    attention = LatentAttention(
        "self_attn", rope=RopeKind.INTERLEAVED, keeps_pairs=True, scaling=latent_scaling(config)
    )
    return Declaration(
        layers=[
            layer(config, attention, is_sparse=index >= config.first_k_dense_replace)
            for index in range(config.num_hidden_layers)
        ],
        rotary=[Rotary(columns=PairAngles.ALL)],
    )


def layer(config: Any, mixer: MixerDeclaration, *, is_sparse: bool) -> Layer:
    """Return a layer with an MLP, or with experts and one that every token goes to."""
    if not is_sparse:
        return Layer(mixer=mixer, mlp=Mlp())
    has_groups = config.topk_method == "group_limited_greedy"
    router = Router(
        kind=RouterKind.SOFTMAX_FIRST,
        top_k=config.num_experts_per_tok,
        is_normalised=False,
        scale=config.routed_scaling_factor,
        groups=config.n_group if has_groups else 1,
        top_groups=config.topk_group if has_groups else 1,
        is_by_best=has_groups and config.n_group > 1,
    )
    return Layer(mixer=mixer, experts=Experts(router=router), mlp=Mlp(module="mlp.shared_experts"))


LOG_MULTIPLIER = 0.1  # of yarn: llama.cpp stores this times mscale_all_dim
PLACES = {**NORMS, **LATENT, **ROUTER, **CORRECTION, **DENSE, **shared_linears("mlp.shared_experts")}


def gguf_config(file: GgufFile) -> Values:
    """``deepseek2``: DeepSeek V2, V3, R1, Kimi K2 and GLM-4.7-Flash, whose experts are scored by softmax or sigmoid."""
    values, experts = decoder_values(file), expert_values(file)
    rope = file.integer("rope.dimension_count")
    is_v3 = gating(file) == SIGMOID
    latent = {
        "q_lora_rank": file.integer("attention.q_lora_rank", 0) or None,
        "kv_lora_rank": file.integer("attention.kv_lora_rank"),
        "qk_rope_head_dim": rope,
        "qk_nope_head_dim": file.integer("attention.key_length_mla", file.integer("attention.key_length")) - rope,
        "v_head_dim": file.integer("attention.value_length_mla", file.integer("attention.value_length")),
        "num_key_value_heads": values["num_attention_heads"],
        "rope_interleave": True,
    }
    scaling = values["rope_parameters"]
    if file.has("rope.scaling.yarn_log_multiplier"):
        mscale = file.number("rope.scaling.yarn_log_multiplier") / LOG_MULTIPLIER
        scaling = scaling | {"mscale": mscale, "mscale_all_dim": mscale}
    groups = file.integer("expert_group_count", 1)
    routing: Values = {
        "model_type": "deepseek_v3" if is_v3 else "deepseek_v2",
        "n_routed_experts": experts["num_experts"],
        "n_shared_experts": file.integer("expert_shared_count", 0) or None,
        "first_k_dense_replace": file.integer("leading_dense_block_count", 0),
        "routed_scaling_factor": file.number("expert_weights_scale", 1.0) or 1.0,
        "norm_topk_prob": bool(file.value("expert_weights_norm", False)),
        "n_group": groups,
        "topk_group": file.integer("expert_group_used_count", 1),
    }
    if not is_v3:
        routing["topk_method"] = "group_limited_greedy" if groups > 1 else "greedy"
    values.pop("head_dim")
    return values | experts | latent | routing | {"rope_parameters": scaling}


GGUF = Architecture(
    "deepseek2",
    gguf_config,
    PLACES,
    keys={
        **GROUPS,
        **ROTATED_IN_PART,
        **read("attention.q_lora_rank", "attention.kv_lora_rank", "attention.key_length_mla"),
        **read("attention.value_length_mla", "rope.scaling.yarn_log_multiplier"),
        "attention.temperature_scale": one_of(0),
        "attention.temperature_length": one_of(0),
    },
)
