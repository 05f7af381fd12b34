"""Granite 4: Mamba-2 with some layers of attention, and Granite's experts with an MLP beside them."""

from __future__ import annotations

from typing import Any

from server.model.declarations import Declaration, GroupedAttention, Mamba2, RopeKind, Rotary
from server.model.declarations.gguf import (
    STATES,
    Architecture,
    GgufFile,
    Values,
    decoder_values,
    has_tensor,
    mamba,
    mamba_head,
    numbers_by_layer,
    read,
)
from server.model.families import granitemoe
from server.model.families.granitemoe import layer, model


def declare(config: Any) -> Declaration:
    has_positions = config.position_embedding_type == "rope"
    rope = RopeKind.HALVES if has_positions else RopeKind.NONE
    layers = {
        "linear_attention": layer(config, Mamba2("mamba"), has_shared=True),
        "full_attention": layer(
            config,
            GroupedAttention("self_attn", rope=rope, scaling=config.attention_multiplier),
            has_shared=True,
        ),
    }
    return model(config, [layers[kind] for kind in config.layer_types], rotary=[Rotary()] if has_positions else [])


MIXERS = ("linear_attention", "full_attention")


def gguf_config(file: GgufFile) -> Values:
    """``granitehybrid``: Mamba-2 layers, and attention in the layers that have heads of keys."""
    values = decoder_values(file)
    heads = numbers_by_layer(file, "attention.head_count_kv", values["num_hidden_layers"])
    return (
        values
        | granitemoe.granite_values(file, values)
        | {
            "model_type": "granitemoehybrid",
            "shared_intermediate_size": file.integer("expert_shared_feed_forward_length"),
            "layer_types": [MIXERS[count > 0] for count in heads],
            "position_embedding_type": "rope" if file.value("rope.scaling.finetuned", True) else "nope",
            "mamba_n_heads": file.integer("ssm.time_step_rank"),
            "mamba_d_head": mamba_head(file),
            "mamba_d_state": file.integer("ssm.state_size"),
            "mamba_n_groups": file.integer("ssm.group_count"),
            "mamba_d_conv": file.integer("ssm.conv_kernel"),
            "mamba_expand": file.integer("ssm.inner_size") // max(values["hidden_size"], 1),
            "mamba_conv_bias": has_tensor(file, "ssm_conv1d.bias"),
        }
    )


GGUF = Architecture(
    "granitehybrid",
    gguf_config,
    {**granitemoe.PLACES, **mamba("mamba")},
    keys={**granitemoe.SCALES, **STATES, **read("rope.scaling.finetuned")},
    experts="block_sparse_moe.experts",
)
