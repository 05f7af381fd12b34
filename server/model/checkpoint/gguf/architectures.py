"""The architectures that are read from GGUF: the config of each, and the places of its tensors in transformers' model.

A tensor of a file is a *leaf* of a layer (``blk.N.LEAF``) or of the model; a parameter is named within its layer
(``model.layers.N.NAME``). Names of tensors: ``constants.py`` of llama.cpp's ``gguf-py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from server.model.checkpoint.gguf import configs, conversions
from server.model.checkpoint.gguf.conversions import Convert, unchanged
from server.model.checkpoint.gguf.gguf_file import GgufFile


@dataclass(frozen=True)
class Place:
    """The parameter that a tensor becomes, alone or together with others."""

    name: str
    convert: Convert = unchanged
    others: tuple[str, ...] = ()  # further leaves, whose tensors follow the first one's


Places = Mapping[str, Place]


def linears(names: Mapping[str, str], kinds: tuple[str, ...] = ("weight", "bias")) -> dict[str, Place]:
    """Return the places of modules with weights and perhaps biases."""
    return {f"{leaf}.{kind}": Place(f"{name}.{kind}") for leaf, name in names.items() for kind in kinds}


MODEL = linears(
    {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}, kinds=("weight",)
)


@dataclass(frozen=True)
class Architecture:
    """An architecture of llama.cpp, as transformers computes it."""

    config: Callable[[GgufFile], dict[str, Any]]
    layer: Places  # by the leaf of the first tensor
    model: Places = field(default_factory=lambda: MODEL)
    experts: str = "mlp.experts"  # the module of experts in a layer
    ignored: tuple[str, ...] = ()  # leaves of the model that say nothing that the config does not say


NORMS = linears({"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}, kinds=("weight",))
POST_NORM = linears({"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"}, ("weight",))
ATTENTION = linears(
    {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
    }
)
HEAD_NORMS = linears({"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}, kinds=("weight",))
ROUTER = linears({"ffn_gate_inp": "mlp.gate"}, kinds=("weight",))
CORRECTION = {"exp_probs_b.bias": Place("mlp.gate.e_score_correction_bias")}
DENSE = linears({"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}, kinds=("weight",))
GROUPED = {**ATTENTION, **HEAD_NORMS, **ROUTER, **DENSE}


def shared_experts(module: str) -> dict[str, Place]:
    """Return the places of shared experts."""
    return linears({f"ffn_{kind}_shexp": f"mlp.{module}.{kind}_proj" for kind in ("gate", "up", "down")}, ("weight",))


SHARED_GATE = {"ffn_gate_inp_shexp.weight": Place("mlp.shared_expert_gate.weight", conversions.one_row)}
LATENT = {
    **linears(
        {
            "attn_q": "self_attn.q_proj",
            "attn_q_a": "self_attn.q_a_proj",
            "attn_q_a_norm": "self_attn.q_a_layernorm",
            "attn_q_b": "self_attn.q_b_proj",
            "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
            "attn_kv_a_norm": "self_attn.kv_a_layernorm",
            "attn_kv_b": "self_attn.kv_b_proj",
            "attn_output": "self_attn.o_proj",
        },
        kinds=("weight",),
    ),
    "attn_k_b.weight": Place(
        "self_attn.kv_b_proj.weight", conversions.expansion_of_latents, others=("attn_v_b.weight",)
    ),
}
OFFSET_NORMS = {
    "attn_norm.weight": Place("input_layernorm.weight", conversions.less_one),
    "post_attention_norm.weight": Place("post_attention_layernorm.weight", conversions.less_one),
    "attn_q_norm.weight": Place("self_attn.q_norm.weight", conversions.less_one),
    "attn_k_norm.weight": Place("self_attn.k_norm.weight", conversions.less_one),
}
OFFSET_MODEL = {**MODEL, "output_norm.weight": Place("model.norm.weight", conversions.less_one)}
QWEN3_NEXT = {
    **GROUPED,
    **OFFSET_NORMS,
    **shared_experts("shared_expert"),
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
    **shared_experts("shared_expert"),
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
MIXTRAL = {
    **NORMS,
    **ATTENTION,
    **ROUTER,
    "attn_q.weight": Place("self_attn.q_proj.weight", conversions.queries_in_halves),
    "attn_k.weight": Place("self_attn.k_proj.weight", conversions.keys_in_halves),
}
GPT_OSS = {
    **POST_NORM,
    **ATTENTION,
    **linears({"ffn_gate_inp": "mlp.router"}),
    "attn_sinks.weight": Place("self_attn.sinks"),
}
DEEPSEEK = {**NORMS, **LATENT, **ROUTER, **CORRECTION, **DENSE, **shared_experts("shared_experts")}
GLM4 = {**POST_NORM, **GROUPED, **CORRECTION, **shared_experts("shared_experts")}
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

ARCHITECTURES: Mapping[str, Architecture] = {
    "qwen2moe": Architecture(configs.qwen2_moe, {**NORMS, **GROUPED, **shared_experts("shared_expert"), **SHARED_GATE}),
    "qwen3moe": Architecture(configs.qwen3_moe, {**NORMS, **GROUPED}),
    "qwen3next": Architecture(configs.qwen3_next, QWEN3_NEXT, model=OFFSET_MODEL),
    "qwen35moe": Architecture(configs.qwen3_5_moe, QWEN3_5, model=OFFSET_MODEL),
    "olmoe": Architecture(configs.olmoe, {**NORMS, **GROUPED}),
    "llama": Architecture(configs.mixtral, MIXTRAL),
    "gpt-oss": Architecture(configs.gpt_oss, GPT_OSS),
    "deepseek2": Architecture(configs.deepseek, DEEPSEEK),
    "glm4moe": Architecture(configs.glm4_moe, GLM4),
    "gemma4": Architecture(configs.gemma4, GEMMA4, experts="experts", ignored=("rope_freqs.weight",)),
    "lfm2moe": Architecture(configs.lfm2_moe, LFM2, experts="feed_forward.experts", model=LFM2_MODEL),
}
