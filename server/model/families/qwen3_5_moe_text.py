"""Qwen3.5-35B-A3B, 122B-A10B and 397B-A17B: Qwen3-Next's layers, with experts in all, and positions of three axes."""

from __future__ import annotations

from typing import Any

from server.model.declarations import Declaration, Layer, Rotary
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
    read,
    shared_linears,
)
from server.model.families.mixtral import experts
from server.model.families.qwen2_moe import shared_expert
from server.model.families.qwen3_next import mixers


def declare(config: Any) -> Declaration:
    kinds = mixers(config)
    return Declaration(
        layers=[Layer(mixer=kinds[kind], experts=experts(config), mlp=shared_expert()) for kind in config.layer_types],
        rotary=[Rotary(num_axes=3)],
    )


PLACES = {
    **GROUPED,
    **OFFSET_NORMS,
    **shared_linears("mlp.shared_expert"),
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


def gguf_config(file: GgufFile) -> Values:
    """``qwen35moe``: Qwen3.5 and 3.6; positions of text are those of all three axes."""
    values = decoder_values(file)
    rotated = partly_rotated(file, values)
    sections = [each for each in file.value("rope.dimension_sections", []) if each]
    if sections:
        rotated["rope_parameters"] |= {"mrope_section": sections, "mrope_interleaved": True}
    return values | expert_values(file) | delta_net(file, values) | rotated | {"model_type": "qwen3_5_moe_text"}


GGUF = Architecture(
    "qwen35moe", gguf_config, PLACES, keys=DELTA_NET | read("rope.dimension_sections"), model=OFFSET_MODEL
)
