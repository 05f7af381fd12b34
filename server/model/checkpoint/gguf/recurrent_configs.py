"""Configs of architectures with recurrent or convolution layers, made from the metadata of GGUF files."""

from __future__ import annotations

from server.model.checkpoint.gguf.config_values import (
    Values,
    decoder_values,
    expert_values,
    flags_by_layer,
    numbers_by_layer,
    partly_rotated,
)
from server.model.checkpoint.gguf.configs import granite_values
from server.model.checkpoint.gguf.gguf_file import GgufFile

MIXERS = ("linear_attention", "full_attention")


def qwen3_next(file: GgufFile) -> Values:
    """``qwen3next``: gated delta nets, with full attention in every fourth layer."""
    values = decoder_values(file)
    return (
        values
        | expert_values(file)
        | _delta_net(file, values)
        | partly_rotated(file, values)
        | {
            "model_type": "qwen3_next",
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    )


def qwen3_5_moe(file: GgufFile) -> Values:
    """``qwen35moe``: Qwen3.5 and 3.6; positions of text are those of all three axes."""
    values = decoder_values(file)
    rotated = partly_rotated(file, values)
    sections = [each for each in file.value("rope.dimension_sections", []) if each]
    if sections:
        rotated["rope_parameters"] |= {"mrope_section": sections, "mrope_interleaved": True}
    return values | expert_values(file) | _delta_net(file, values) | rotated | {"model_type": "qwen3_5_moe_text"}


def lfm2_moe(file: GgufFile) -> Values:
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


def granite_hybrid(file: GgufFile) -> Values:
    """``granitehybrid``: Mamba-2 layers, and attention in the layers that have heads of keys."""
    values = decoder_values(file)
    heads = numbers_by_layer(file, "attention.head_count_kv", values["num_hidden_layers"])
    return (
        values
        | granite_values(file, values)
        | {
            "model_type": "granitemoehybrid",
            "shared_intermediate_size": file.integer("expert_shared_feed_forward_length"),
            "layer_types": [MIXERS[count > 0] for count in heads],
            "position_embedding_type": "rope" if file.value("rope.scaling.finetuned", True) else "nope",
            "mamba_n_heads": file.integer("ssm.time_step_rank"),
            "mamba_d_head": _mamba_head(file),
            "mamba_d_state": file.integer("ssm.state_size"),
            "mamba_n_groups": file.integer("ssm.group_count"),
            "mamba_d_conv": file.integer("ssm.conv_kernel"),
            "mamba_expand": file.integer("ssm.inner_size") // max(values["hidden_size"], 1),
            "mamba_conv_bias": _has_tensor(file, "ssm_conv1d.bias"),
        }
    )


def nemotron_h_moe(file: GgufFile) -> Values:
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
            "mamba_head_dim": _mamba_head(file),
            "ssm_state_size": file.integer("ssm.state_size"),
            "n_groups": file.integer("ssm.group_count"),
            "conv_kernel": file.integer("ssm.conv_kernel"),
            "use_conv_bias": _has_tensor(file, "ssm_conv1d.bias"),
        }
    )


def _mamba_head(file: GgufFile) -> int:
    return file.integer("ssm.inner_size") // max(file.integer("ssm.time_step_rank"), 1)


def _has_tensor(file: GgufFile, leaf: str) -> bool:
    return any(name.endswith(f".{leaf}") for name in file.tensors)


def _delta_net(file: GgufFile, values: Values) -> Values:
    heads, num_layers = file.integer("ssm.time_step_rank"), values["num_hidden_layers"]
    if file.has("attention.recurrent_layers"):
        is_recurrent = flags_by_layer(file, "attention.recurrent_layers", num_layers)
    else:
        interval = file.integer("full_attention_interval", 4)
        is_recurrent = [(layer + 1) % interval != 0 for layer in range(num_layers)]
    return {
        "linear_conv_kernel_dim": file.integer("ssm.conv_kernel"),
        "linear_key_head_dim": file.integer("ssm.state_size"),
        "linear_num_key_heads": file.integer("ssm.group_count"),
        "linear_num_value_heads": heads,
        "linear_value_head_dim": file.integer("ssm.inner_size") // max(heads, 1),
        "shared_expert_intermediate_size": file.integer("expert_shared_feed_forward_length"),
        "layer_types": [MIXERS[not recurs] for recurs in is_recurrent],
    }
