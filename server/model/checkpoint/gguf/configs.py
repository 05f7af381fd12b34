"""Configs of transformers, made from the metadata of GGUF files: one function for each architecture.

The keys are those of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and of llama.cpp's ``gguf-py``.
"""

from __future__ import annotations

from typing import Any

from expert_store import read_tensor
from server.model.checkpoint.config_checks import MOST
from server.model.checkpoint.gguf.gguf_file import GgufFile
from server.model.errors import ModelError

Values = dict[str, Any]
SOFTMAX, SIGMOID = 1, 2  # expert_gating_func
LOG_MULTIPLIER = 0.1  # of yarn: llama.cpp stores this times mscale_all_dim
UNROTATED = 1e29  # factors of frequencies above it belong to numbers that are not rotated


def qwen2_moe(file: GgufFile) -> Values:
    """``qwen2moe``: grouped-query attention with biases, a shared expert with a gate."""
    return (
        _decoder(file)
        | _experts(file)
        | {
            "model_type": "qwen2_moe",
            "shared_expert_intermediate_size": file.integer("expert_shared_feed_forward_length", 0)
            or _outputs(file, "ffn_gate_shexp"),
            "norm_topk_prob": bool(file.value("expert_weights_norm", False)),
            "qkv_bias": True,
        }
    )


def qwen3_moe(file: GgufFile) -> Values:
    """``qwen3moe``; files do not say that the weights of chosen experts are normalised, which they always are."""
    return _decoder(file) | _experts(file) | {"model_type": "qwen3_moe", "norm_topk_prob": True}


def olmoe(file: GgufFile) -> Values:
    """``olmoe``: norms over all queries and all keys."""
    experts = _experts(file)
    return _decoder(file) | {
        "model_type": "olmoe",
        "intermediate_size": experts["moe_intermediate_size"],
        "num_experts": experts["num_experts"],
        "num_experts_per_tok": experts["num_experts_per_tok"],
        "norm_topk_prob": bool(file.value("expert_weights_norm", False)),
    }


def mixtral(file: GgufFile) -> Values:
    """``llama`` with experts, which is Mixtral."""
    experts = _experts(file)
    return _decoder(file) | {
        "model_type": "mixtral",
        "intermediate_size": experts["moe_intermediate_size"],
        "num_local_experts": experts["num_experts"],
        "num_experts_per_tok": experts["num_experts_per_tok"],
        "sliding_window": file.integer("attention.sliding_window", 0) or None,
    }


def gpt_oss(file: GgufFile) -> Values:
    """``gpt-oss``: every second layer has a window, the first one has."""
    values, experts = _decoder(file), _experts(file)
    kinds = ("sliding_attention", "full_attention")
    return values | {
        "model_type": "gpt_oss",
        "intermediate_size": experts["moe_intermediate_size"],
        "num_local_experts": experts["num_experts"],
        "num_experts_per_tok": experts["num_experts_per_tok"],
        "sliding_window": file.integer("attention.sliding_window"),
        "layer_types": [kinds[layer % 2] for layer in range(values["num_hidden_layers"])],
        "attention_bias": True,
        "rope_parameters": values["rope_parameters"] | {"truncate": False},
    }


def deepseek(file: GgufFile) -> Values:
    """``deepseek2``: DeepSeek V2, V3, R1, Kimi K2 and GLM-4.7-Flash, whose experts are scored by softmax or sigmoid."""
    values, experts = _decoder(file), _experts(file)
    rope = file.integer("rope.dimension_count")
    is_v3 = _gating(file) == SIGMOID
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


def glm4_moe(file: GgufFile) -> Values:
    """``glm4moe``: GLM-4.5 to 4.7."""
    values, experts = _decoder(file), _experts(file)
    return (
        values
        | experts
        | _partly_rotated(file, values)
        | {
            "model_type": "glm4_moe",
            "n_routed_experts": experts["num_experts"],
            "n_shared_experts": file.integer("expert_shared_count", 1),
            "first_k_dense_replace": file.integer("leading_dense_block_count", 0),
            "routed_scaling_factor": file.number("expert_weights_scale", 1.0),
            "norm_topk_prob": bool(file.value("expert_weights_norm", True)),
            "n_group": file.integer("expert_group_count", 1),
            "topk_group": file.integer("expert_group_used_count", 1),
            "use_qk_norm": "blk.0.attn_q_norm.weight" in file.tensors,
            "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        }
    )


def qwen3_next(file: GgufFile) -> Values:
    """``qwen3next``: gated delta nets, with full attention in every fourth layer."""
    values = _decoder(file)
    return (
        values
        | _experts(file)
        | _delta_net(file, values)
        | _partly_rotated(file, values)
        | {
            "model_type": "qwen3_next",
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    )


def qwen3_5_moe(file: GgufFile) -> Values:
    """``qwen35moe``: Qwen3.5 and 3.6; positions of text are those of all three axes."""
    values = _decoder(file)
    rotated = _partly_rotated(file, values)
    sections = [each for each in file.value("rope.dimension_sections", []) if each]
    if sections:
        rotated["rope_parameters"] |= {"mrope_section": sections, "mrope_interleaved": True}
    return values | _experts(file) | _delta_net(file, values) | rotated | {"model_type": "qwen3_5_moe_text"}


def gemma4(file: GgufFile) -> Values:
    """``gemma4`` with experts: most layers have a window, and other heads and rotary positions than the rest."""
    values, experts = _decoder(file), _experts(file)
    kinds = ("full_attention", "sliding_attention")
    windows = file.value("attention.sliding_window_pattern")
    heads = _by_layer(file, "attention.head_count_kv", len(windows))
    local, complete = (
        [count for count, has_window in zip(heads, windows, strict=True) if has_window == kind] for kind in (1, 0)
    )
    factors = read_tensor(file.tensors["rope_freqs.weight"].source) if "rope_freqs.weight" in file.tensors else None
    rotated = 1.0 if factors is None else (factors < UNROTATED).float().mean().item()
    theta = values["rope_parameters"]["rope_theta"]
    return values | {
        "model_type": "gemma4_text",
        "moe_intermediate_size": experts["moe_intermediate_size"],
        "num_experts": experts["num_experts"],
        "top_k_experts": experts["num_experts_per_tok"],
        "enable_moe_block": True,
        "layer_types": [kinds[bool(has_window)] for has_window in windows],
        "sliding_window": file.integer("attention.sliding_window"),
        "num_key_value_heads": max(local or complete),
        "num_global_key_value_heads": max(complete or local),
        "head_dim": file.integer("attention.key_length_swa"),
        "global_head_dim": file.integer("attention.key_length"),
        "attention_k_eq_v": any(f"blk.{layer}.attn_v.weight" not in file.tensors for layer in range(len(windows))),
        "hidden_size_per_layer_input": file.integer("embedding_length_per_layer_input", 0),
        "num_kv_shared_layers": file.integer("attention.shared_kv_layers", 0),
        "final_logit_softcapping": file.number("final_logit_softcapping", 0.0) or None,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": file.number("rope.freq_base_swa", theta)},
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": rotated, "rope_theta": theta},
        },
    }


def lfm2_moe(file: GgufFile) -> Values:
    """``lfm2moe``: short convolutions, and attention in the layers that have heads of keys."""
    values = _decoder(file)
    heads = _by_layer(file, "attention.head_count_kv", values["num_hidden_layers"])
    kinds = ("conv", "full_attention")
    return (
        values
        | _experts(file)
        | {
            "model_type": "lfm2_moe",
            "norm_eps": values["rms_norm_eps"],
            "conv_L_cache": file.integer("shortconv.l_cache"),
            "conv_bias": False,
            "num_dense_layers": file.integer("leading_dense_block_count"),
            "layer_types": [kinds[count > 0] for count in heads],
            "norm_topk_prob": bool(file.value("expert_weights_norm", True)),
            "routed_scaling_factor": file.number("expert_weights_scale", 1.0),
            "use_expert_bias": any(name.endswith("exp_probs_b.bias") for name in file.tensors),
        }
    )


def _decoder(file: GgufFile) -> Values:
    """The values that nearly every architecture has."""
    heads, hidden = file.integer("attention.head_count"), file.integer("embedding_length")
    nextn = file.integer("nextn_predict_layers", 0)  # layers that predict further tokens, after the others
    num_layers = file.integer("block_count") - nextn
    if not 1 <= num_layers <= MOST["layers"]:
        raise ModelError(
            f"{file.path.name} has {num_layers} layers, not 1 to {MOST['layers']}; download the file again"
        )
    return {
        "hidden_size": hidden,
        "num_hidden_layers": num_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": file.integer("attention.head_count_kv", heads),
        "head_dim": file.integer("attention.key_length", hidden // heads if heads else 0),
        "intermediate_size": file.integer("feed_forward_length", 0) or file.integer("expert_feed_forward_length", 0),
        "rms_norm_eps": file.number("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": file.integer("context_length"),
        "vocab_size": _vocabulary(file),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": file.plain("tokenizer.ggml.bos_token_id", int),
        "eos_token_id": file.plain("tokenizer.ggml.eos_token_id", int),
        "pad_token_id": file.plain("tokenizer.ggml.padding_token_id", int),
        "rope_parameters": _rope(file),
        "dtype": "bfloat16",
    }


def _experts(file: GgufFile) -> Values:
    length = file.integer("expert_feed_forward_length", 0) or _outputs(file, "ffn_gate_exps", "ffn_gate_up_exps")
    return {
        "num_experts": file.integer("expert_count"),
        "num_experts_per_tok": file.integer("expert_used_count"),
        "moe_intermediate_size": length or file.integer("feed_forward_length"),
    }


def _delta_net(file: GgufFile, values: Values) -> Values:
    heads, interval = file.integer("ssm.time_step_rank"), file.integer("full_attention_interval", 4)
    kinds = ("linear_attention", "full_attention")
    return {
        "linear_conv_kernel_dim": file.integer("ssm.conv_kernel"),
        "linear_key_head_dim": file.integer("ssm.state_size"),
        "linear_num_key_heads": file.integer("ssm.group_count"),
        "linear_num_value_heads": heads,
        "linear_value_head_dim": file.integer("ssm.inner_size") // max(heads, 1),
        "shared_expert_intermediate_size": file.integer("expert_shared_feed_forward_length"),
        "layer_types": [kinds[(layer + 1) % interval == 0] for layer in range(values["num_hidden_layers"])],
    }


def _partly_rotated(file: GgufFile, values: Values) -> Values:
    factor = file.integer("rope.dimension_count", values["head_dim"]) / values["head_dim"]
    return {"rope_parameters": values["rope_parameters"] | {"partial_rotary_factor": factor}}


def _rope(file: GgufFile) -> Values:
    values: Values = {"rope_type": "default", "rope_theta": file.number("rope.freq_base", 10000.0)}
    kind = file.value("rope.scaling.type", "none")
    if kind == "none" or file.number("rope.scaling.factor", 1.0) <= 1.0:
        return values
    factor = file.number("rope.scaling.factor")
    if kind == "linear":
        return values | {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise ModelError(
            f"{file.path.name} scales rotary positions by {kind!r}, which Greenroom does not read from GGUF; name "
            "the model that it was made from with --config-from"
        )
    return values | {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": file.integer("rope.scaling.original_context_length"),
        "beta_fast": file.number("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": file.number("rope.scaling.yarn_beta_slow", 1.0),
    }


def _by_layer(file: GgufFile, key: str, num_layers: int) -> list[int]:
    """A number of each layer; files with the same one for all have it once."""
    found = file.value(key)
    numbers = found if isinstance(found, list) else [found] * num_layers
    if len(numbers) != num_layers or any(type(each) is not int for each in numbers):
        raise ModelError(
            f"{file.architecture}.{key} of {file.path.name} is not a number for each of {num_layers} layers"
        )
    return numbers


def _gating(file: GgufFile) -> int:
    """Return how experts are scored; older files do not say it, and a correction of scores belongs to sigmoids."""
    default = SIGMOID if any(name.endswith("exp_probs_b.bias") for name in file.tensors) else SOFTMAX
    return file.integer("expert_gating_func", default)


def _vocabulary(file: GgufFile) -> int:
    table = file.tensors.get("token_embd.weight")
    if table is None:
        raise ModelError(f"{file.path.name} lacks token_embd.weight; download the file again")
    return table.shape[0]


def _outputs(file: GgufFile, *leaves: str) -> int:
    """The outputs of the matrices of a name in the first layer that has them; 0 if none has."""
    for tensor in file.tensors.values():
        for leaf in leaves:
            if tensor.name.endswith(f".{leaf}.weight"):
                return tensor.shape[-2] // (2 if "gate_up" in leaf else 1)
    return 0
