"""The architectures that are read from GGUF: the config of each, and the places of its tensors in the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from server.model.checkpoint.gguf import configs, conversions, recurrent_configs
from server.model.checkpoint.gguf.gguf_file import GgufFile
from server.model.checkpoint.gguf.places import (
    ATTENTION,
    CORRECTION,
    DENSE,
    GROUPED,
    HEAD_NORMS,
    LATENT,
    NORMS,
    OFFSET_NORMS,
    PERMUTED,
    POST_NORM,
    ROUTER,
    SHARED_GATE,
    Place,
    Places,
    linears,
    mamba,
    shared_experts,
)

MODEL = linears(
    {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}, kinds=("weight",)
)
OFFSET_MODEL = {**MODEL, "output_norm.weight": Place("model.norm.weight", conversions.less_one)}
FACTORS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")  # the config has them


@dataclass(frozen=True)
class Architecture:
    """An architecture of llama.cpp, as transformers computes it."""

    config: Callable[[GgufFile], dict[str, Any]]
    layer: Places  # by the leaf of the first tensor
    model: Places = field(default_factory=lambda: MODEL)
    experts: str = "mlp.experts"  # the module of experts in a layer


QWEN2 = {**NORMS, **GROUPED, **shared_experts("mlp.shared_expert"), **SHARED_GATE}
QWEN3_NEXT = {
    **GROUPED,
    **OFFSET_NORMS,
    **shared_experts("mlp.shared_expert"),
    **SHARED_GATE,
    "attn_qkv.weight": Place(
        "linear_attn.in_proj_qkvz.weight", conversions.delta_net_inputs, others=("attn_gate.weight",)
    ),
    "ssm_ba.weight": Place("linear_attn.in_proj_ba.weight"),
    "ssm_a": Place("linear_attn.A_log", conversions.decay_log),
    "ssm_dt.bias": Place("linear_attn.dt_bias"),
    "ssm_conv1d.weight": Place("linear_attn.conv1d.weight", conversions.with_channel),
    "ssm_norm.weight": Place("linear_attn.norm.weight"),
    "ssm_out.weight": Place("linear_attn.out_proj.weight"),
}
QWEN3_5 = {
    **GROUPED,
    **OFFSET_NORMS,
    **shared_experts("mlp.shared_expert"),
    **SHARED_GATE,
    "attn_qkv.weight": Place("linear_attn.in_proj_qkv.weight", conversions.grouped_last_rows),
    "attn_gate.weight": Place("linear_attn.in_proj_z.weight", conversions.grouped_rows),
    "ssm_alpha.weight": Place("linear_attn.in_proj_a.weight", conversions.grouped_rows),
    "ssm_beta.weight": Place("linear_attn.in_proj_b.weight", conversions.grouped_rows),
    "ssm_a": Place("linear_attn.A_log", conversions.grouped_decay_log),
    "ssm_dt.bias": Place("linear_attn.dt_bias", conversions.grouped_rows),
    "ssm_conv1d.weight": Place("linear_attn.conv1d.weight", conversions.grouped_channels),
    "ssm_norm.weight": Place("linear_attn.norm.weight"),
    "ssm_out.weight": Place("linear_attn.out_proj.weight", conversions.grouped_columns),
}
MIXTRAL = {**NORMS, **ATTENTION, **PERMUTED, **ROUTER}
GPT_OSS = {
    **POST_NORM,
    **ATTENTION,
    **linears({"ffn_gate_inp": "mlp.router"}),
    "attn_sinks.weight": Place("self_attn.sinks"),
}
DEEPSEEK = {**NORMS, **LATENT, **ROUTER, **CORRECTION, **DENSE, **shared_experts("mlp.shared_experts")}
GLM4 = {**POST_NORM, **GROUPED, **CORRECTION, **shared_experts("mlp.shared_experts")}
GEMMA4 = {
    **ATTENTION,
    **HEAD_NORMS,
    **DENSE,
    **linears(
        {
            "attn_norm": "input_layernorm",
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
            "post_ffw_norm": "post_feedforward_layernorm",
            "post_ffw_norm_1": "post_feedforward_layernorm_1",
            "post_ffw_norm_2": "post_feedforward_layernorm_2",
            "ffn_gate_inp": "router.proj",
        },
        kinds=("weight",),
    ),
    "ffn_gate_inp.scale": Place("router.scale"),
    "ffn_down_exps.scale": Place("router.per_expert_scale"),
    "layer_output_scale.weight": Place("layer_scalar"),
}
LFM2 = {
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
LFM2_MODEL = linears({"token_embd": "model.embed_tokens", "output": "lm_head"}, kinds=("weight",)) | {
    name: Place("model.embedding_norm.weight") for name in ("token_embd_norm.weight", "output_norm.weight")
}
LLAMA4 = {
    **NORMS,
    **ATTENTION,
    **linears({"ffn_gate_inp": "feed_forward.router"}, ("weight",)),
    **linears({f"ffn_{kind}": f"feed_forward.{kind}_proj" for kind in ("gate", "up", "down")}, ("weight",)),
    **shared_experts("feed_forward.shared_expert"),
}
MINIMAX = {**NORMS, **GROUPED, "exp_probs_b.bias": Place("mlp.e_score_correction_bias")}
ERNIE = {
    **NORMS,
    **GROUPED,
    **shared_experts("mlp.shared_experts"),
    "exp_probs_b.bias": Place("mlp.gate.moe_statics.e_score_correction_bias", conversions.one_row),
}
GRANITE = {
    **NORMS,
    **ATTENTION,
    **PERMUTED,
    **linears({"ffn_gate_inp": "block_sparse_moe.router", "ffn_down_shexp": "shared_mlp.output_linear"}, ("weight",)),
    "ffn_gate_shexp.weight": Place(
        "shared_mlp.input_linear.weight", conversions.joined, others=("ffn_up_shexp.weight",)
    ),
}
PHI_MODEL = linears({"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"})
PHI = {
    **linears({"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "ffn_gate_inp": "mlp.router"}),
    **ATTENTION,
}
DOTS = {**NORMS, **GROUPED, **CORRECTION, **shared_experts("mlp.shared_experts")}
HUNYUAN = {
    **NORMS,
    **ATTENTION,
    **linears(
        {
            "attn_q_norm": "self_attn.query_layernorm",
            "attn_k_norm": "self_attn.key_layernorm",
            "ffn_gate_inp": "mlp.gate.wg",
        },
        kinds=("weight",),
    ),
    **shared_experts("mlp.shared_mlp"),
}
NEMOTRON_MODEL = linears(
    {"token_embd": "model.embeddings", "output_norm": "model.norm_f", "output": "lm_head"}, kinds=("weight",)
)
NEMOTRON = {
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
    **shared_experts("mixer.shared_experts"),
    "exp_probs_b.bias": Place("mixer.gate.e_score_correction_bias"),
}

ARCHITECTURES: Mapping[str, Architecture] = {
    "qwen2moe": Architecture(
        configs.qwen2_moe, {**NORMS, **GROUPED, **shared_experts("mlp.shared_expert"), **SHARED_GATE}
    ),
    "qwen3moe": Architecture(configs.qwen3_moe, {**NORMS, **GROUPED}),
    "qwen3vlmoe": Architecture(configs.qwen3_moe, {**NORMS, **GROUPED}),
    "qwen3next": Architecture(recurrent_configs.qwen3_next, QWEN3_NEXT, model=OFFSET_MODEL),
    "qwen35moe": Architecture(recurrent_configs.qwen3_5_moe, QWEN3_5, model=OFFSET_MODEL),
    "olmoe": Architecture(configs.olmoe, {**NORMS, **GROUPED}),
    "llama": Architecture(configs.mixtral, MIXTRAL),
    "gpt-oss": Architecture(configs.gpt_oss, GPT_OSS),
    "deepseek2": Architecture(configs.deepseek, DEEPSEEK),
    "glm4moe": Architecture(configs.glm4_moe, GLM4),
    "gemma4": Architecture(configs.gemma4, GEMMA4, experts="experts"),
    "lfm2moe": Architecture(recurrent_configs.lfm2_moe, LFM2, experts="feed_forward.experts", model=LFM2_MODEL),
    "llama4": Architecture(configs.llama4, LLAMA4, experts="feed_forward.experts"),
    "minimax-m2": Architecture(configs.minimax_m2, MINIMAX),
    "ernie4_5-moe": Architecture(configs.ernie4_5_moe, ERNIE),
    "granitemoe": Architecture(configs.granite_moe, GRANITE, experts="block_sparse_moe.experts"),
    "granitehybrid": Architecture(
        recurrent_configs.granite_hybrid, {**GRANITE, **mamba("mamba")}, experts="block_sparse_moe.experts"
    ),
    "nemotron_h_moe": Architecture(
        recurrent_configs.nemotron_h_moe, NEMOTRON, experts="mixer.experts", model=NEMOTRON_MODEL
    ),
    "phimoe": Architecture(configs.phi_moe, PHI, model=PHI_MODEL),
    "dots1": Architecture(configs.dots1, DOTS),
    "hunyuan-moe": Architecture(configs.hunyuan_moe, HUNYUAN),
}
