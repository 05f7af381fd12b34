"""Qwen3-Next-80B-A3B and Qwen3-Coder-Next: gated delta nets, gated attention in every fourth layer, a shared expert."""

from __future__ import annotations

from typing import Any

from server.model.blocks.declaration import MixerDeclaration
from server.model.declarations import Declaration, GatedDeltaNet, GateKind, GroupedAttention, head_scaling
from server.model.declarations.gguf import (
    DELTA_NET,
    GROUPED,
    OFFSET_MODEL,
    OFFSET_NORMS,
    SHARED_GATE,
    Architecture,
    GgufFile,
    Place,
    Values,
    conversions,
    decoder_values,
    delta_net,
    expert_values,
    partly_rotated,
    shared_linears,
)
from server.model.families.qwen2_moe import layer
from server.model.families.qwen3_moe import is_sparse


def declare(config: Any) -> Declaration:
    kinds = mixers(config)
    return Declaration(
        layers=[
            layer(config, kinds[kind], is_sparse=is_sparse(config, index))
            for index, kind in enumerate(config.layer_types)
        ]
    )


def mixers(config: Any) -> dict[str, MixerDeclaration]:
    """Return the mixers by the kind of layer."""
    return {
        "linear_attention": GatedDeltaNet("linear_attn"),
        "full_attention": GroupedAttention("self_attn", scaling=head_scaling(config), gate=GateKind.SIGMOID),
    }


PLACES = {
    **GROUPED,
    **OFFSET_NORMS,
    **shared_linears("mlp.shared_expert"),
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


def gguf_config(file: GgufFile) -> Values:
    """``qwen3next``: gated delta nets, with full attention in every fourth layer."""
    values = decoder_values(file)
    return (
        values
        | expert_values(file)
        | delta_net(file, values)
        | partly_rotated(file, values)
        | {
            "model_type": "qwen3_next",
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    )


GGUF = Architecture("qwen3next", gguf_config, PLACES, keys=DELTA_NET, model=OFFSET_MODEL)
