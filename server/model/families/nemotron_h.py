"""Nemotron 3 Nano: each layer is Mamba-2, attention without positions, experts with a shared one, or an MLP."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from server.model.declarations import (
    Declaration,
    Experts,
    GroupedAttention,
    Layer,
    Mamba2,
    Mlp,
    NoMixer,
    RopeKind,
    head_scaling,
)
from server.model.declarations.gguf import (
    GROUPS,
    ROTATED_IN_PART,
    STATES,
    Architecture,
    GgufFile,
    Place,
    Values,
    decoder_values,
    expert_values,
    has_tensor,
    linears,
    mamba,
    mamba_head,
    numbers_by_layer,
    read,
    shared_linears,
)
from server.model.families.deepseek_v3 import router


def declare(config: Any) -> Declaration:
    attention = GroupedAttention("mixer", rope=RopeKind.NONE, scaling=head_scaling(config))
    chosen = replace(
        router(config),
        module="mixer.gate",
        weight="mixer.gate.weight",
        correction="mixer.gate.e_score_correction_bias",
    )
    experts = Experts(module="mixer.experts", router=chosen)
    if config.moe_latent_size is not None:
        experts = replace(experts, input_projection="mixer.fc1_latent_proj", output_projection="mixer.fc2_latent_proj")
    mlp, shared = Mlp(module="mixer"), Mlp(module="mixer.shared_experts")
    kinds = {
        "linear_attention": Layer(mixer=Mamba2("mixer"), input_norm="norm", inner_norm=None),
        "full_attention": Layer(mixer=attention, input_norm="norm", inner_norm=None),
        "moe": Layer(mixer=NoMixer(), experts=experts, mlp=shared, input_norm=None, inner_norm="norm"),
        "mlp": Layer(mixer=NoMixer(), mlp=mlp, input_norm=None, inner_norm="norm"),
    }
    return Declaration(layers=[kinds[kind] for kind in config.layer_types], rotary=[])


MIXERS = ("linear_attention", "full_attention")
MODEL = linears(
    {"token_embd": "model.embeddings", "output_norm": "model.norm_f", "output": "lm_head"}, kinds=("weight",)
)
PLACES = {
    **mamba("mixer"),
    **linears(
        {
            "attn_q": "mixer.q_proj",
            "attn_k": "mixer.k_proj",
            "attn_v": "mixer.v_proj",
            "attn_output": "mixer.o_proj",
            "ffn_latent_down": "mixer.fc1_latent_proj",
            "ffn_latent_up": "mixer.fc2_latent_proj",
        }
    ),
    **linears({"attn_norm": "norm", "ffn_gate_inp": "mixer.gate"}, kinds=("weight",)),
    **shared_linears("mixer.shared_experts"),
    "exp_probs_b.bias": Place("mixer.gate.e_score_correction_bias"),
}


def gguf_config(file: GgufFile) -> Values:
    """``nemotron_h_moe``: each layer is a Mamba-2 layer, attention, or experts without gates."""
    values, experts = decoder_values(file), expert_values(file)
    num_layers = values["num_hidden_layers"]
    heads = numbers_by_layer(file, "attention.head_count_kv", num_layers)
    lengths = numbers_by_layer(file, "feed_forward_length", num_layers)
    return (
        values
        | experts
        | {
            "model_type": "nemotron_h",
            "layers_block_type": [
                "moe" if length else MIXERS[count > 0] for count, length in zip(heads, lengths, strict=True)
            ],
            "layer_norm_epsilon": values["rms_norm_eps"],
            "n_routed_experts": experts["num_experts"],
            "n_shared_experts": file.integer("expert_shared_count", 1),
            "moe_shared_expert_intermediate_size": file.integer("expert_shared_feed_forward_length"),
            "moe_latent_size": file.integer("moe_latent_size", 0) or None,
            "routed_scaling_factor": file.number("expert_weights_scale", 1.0) or 1.0,
            "norm_topk_prob": bool(file.value("expert_weights_norm", True)),
            "n_group": file.integer("expert_group_count", 1),
            "topk_group": file.integer("expert_group_used_count", 1),
            "mamba_num_heads": file.integer("ssm.time_step_rank"),
            "mamba_head_dim": mamba_head(file),
            "ssm_state_size": file.integer("ssm.state_size"),
            "n_groups": file.integer("ssm.group_count"),
            "conv_kernel": file.integer("ssm.conv_kernel"),
            "use_conv_bias": has_tensor(file, "ssm_conv1d.bias"),
        }
    )


GGUF = Architecture(
    "nemotron_h_moe",
    gguf_config,
    PLACES,
    keys={**GROUPS, **ROTATED_IN_PART, **STATES, **read("moe_latent_size")},
    experts="mixer.experts",
    model=MODEL,
)
