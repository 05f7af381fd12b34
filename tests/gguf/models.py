"""The tiny models of ``tests/gguf/files``: configs, and parameters that depend on their names alone."""

from __future__ import annotations

import json
import math
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

FILES = Path(__file__).parent / "files"
VOCABULARY = 288
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}<|im_start|>"
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
    "intermediate_size": 32,
}
EXPERTS = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
DELTA_NET = {
    **EXPERTS,
    "num_hidden_layers": 4,
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "shared_expert_intermediate_size": 32,
}
LATENT = {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "rope_interleave": True,
    "norm_topk_prob": True,
}
GRANITE = {
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "embedding_multiplier": 12.0,
    "logits_scaling": 3.0,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.25,
}
LONGROPE_SCALE = math.sqrt(1 + math.log(4) / math.log(64))  # as llama.cpp has it for four times 64 tokens
MODELS: dict[str, tuple[str, dict[str, Any]]] = {  # the model type and the fields of each file
    "qwen2moe": ("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 64, "head_dim": 8}),
    "qwen3moe": ("qwen3_moe", {**EXPERTS, "head_dim": 16, "norm_topk_prob": True}),
    "qwen3next": ("qwen3_next", DELTA_NET),
    "qwen35moe": ("qwen3_5_moe_text", DELTA_NET),
    "olmoe": ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 4}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}),
    "gpt-oss": ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 8}),
    "deepseek-v2": ("deepseek_v2", {**LATENT, "topk_method": "greedy", "n_group": 1, "topk_group": 1}),
    "deepseek-v3": (
        "deepseek_v3",
        {**LATENT, "n_group": 2, "topk_group": 1, "scoring_func": "sigmoid", "qk_nope_head_dim": 32},
    ),
    "glm4moe": (
        "glm4_moe",
        {
            "moe_intermediate_size": 32,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "head_dim": 16,
            "use_qk_norm": True,
            "attention_bias": True,
            "partial_rotary_factor": 0.5,
            "num_nextn_predict_layers": 0,
        },
    ),
    "gemma4": (
        "gemma4_text",
        {
            **EXPERTS,
            "top_k_experts": 2,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "sliding_window": 8,
            "head_dim": 8,
            "global_head_dim": 16,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
            "enable_moe_block": True,
            "hidden_size_per_layer_input": 0,
            "num_kv_shared_layers": 0,
            "tie_word_embeddings": True,
        },
    ),
    "llama4": (
        "llama4_text",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 64,
            "head_dim": 8,
            "interleave_moe_layer_step": 2,
            "num_hidden_layers": 4,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
                "rope_theta": 500000.0,
            },
        },
    ),
    "minimax-m2": (
        "minimax_m2",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "head_dim": 16,
            "rotary_dim": 8,
            "scoring_func": "sigmoid",
        },
    ),
    "ernie4_5-moe": (
        "ernie4_5_moe",
        {
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": 32,
            "moe_layer_start_index": 1,
            "moe_layer_interval": 1,
            "moe_num_shared_experts": 2,
            "num_hidden_layers": 3,
        },
    ),
    "granitemoe": ("granitemoe", {**GRANITE, "attention_multiplier": 0.3}),
    "granitemoeshared": ("granitemoeshared", {**GRANITE, "shared_intermediate_size": 64}),
    "granitehybrid": (
        "granitemoehybrid",
        {
            **GRANITE,
            "shared_intermediate_size": 64,
            "num_hidden_layers": 3,
            "layer_types": ["mamba", "attention", "mamba"],
            "position_embedding_type": "nope",
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_d_state": 16,
            "mamba_n_groups": 2,
            "mamba_d_conv": 4,
            "mamba_expand": 2,
        },
    ),
    "nemotron_h_moe": (
        "nemotron_h",
        {
            "hybrid_override_pattern": "ME*E",
            "num_hidden_layers": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "moe_intermediate_size": 32,
            "moe_shared_expert_intermediate_size": 64,
            "moe_latent_size": 64,
            "head_dim": 16,
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "ssm_state_size": 16,
            "n_groups": 2,
            "conv_kernel": 4,
            "routed_scaling_factor": 2.5,
            "norm_topk_prob": True,
            "n_group": 1,
            "topk_group": 1,
            "layer_norm_epsilon": 1e-5,
        },
    ),
    "phimoe": (
        "phimoe",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "attention_bias": True,
            "lm_head_bias": True,
            "rope_scaling": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0, 1.5, 2.0, 3.0],
                "long_factor": [2.0, 3.0, 4.0, 8.0],
                "short_mscale": LONGROPE_SCALE,
                "long_mscale": LONGROPE_SCALE,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "dots1": (
        "dots1",
        {
            "moe_intermediate_size": 32,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_shared_experts": 2,
            "first_k_dense_replace": 1,
            "head_dim": 16,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
            "scoring_func": "sigmoid",
        },
    ),
    "hunyuan-moe": (
        "hunyuan_v1_moe",
        {
            "num_experts": 4,
            "moe_topk": [2, 2],
            "moe_intermediate_size": [32, 32],
            "num_shared_expert": [1, 1],
            "head_dim": 8,
        },
    ),
    "glm4-moe-lite": ("glm4_moe_lite", {**LATENT, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.8}),
    "deepseek-v2-lite": (
        "deepseek_v2",
        {
            **LATENT,
            "q_lora_rank": None,
            "topk_method": "greedy",
            "n_group": 1,
            "topk_group": 1,
            "rope_scaling": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "beta_fast": 32,
                "beta_slow": 1,
                "mscale": 0.707,
                "mscale_all_dim": 0.707,
            },
        },
    ),
    "qwen3vlmoe": (
        "qwen3_vl_moe",
        {
            "text_config": {
                **COMMON,
                **EXPERTS,
                "moe_intermediate_size": 64,
                "head_dim": 16,
                "rope_parameters": {"rope_type": "default", "rope_theta": 5e5, "mrope_section": [4, 2, 2]},
            },
            "vision_config": {
                "depth": 1,
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_heads": 2,
                "out_hidden_size": 32,
                "deepstack_visual_indexes": [0],
            },
        },
    ),
    "lfm2moe": (
        "lfm2_moe",
        {
            **EXPERTS,
            "num_hidden_layers": 3,
            "num_dense_layers": 1,
            "layer_types": ["conv", "full_attention", "conv"],
            "tie_word_embeddings": True,
        },
    ),
}


PUBLISHED_NAMES = {"phimoe": "PhiMoEForCausalLM"}  # of classes that transformers names otherwise
TRANSPOSED = ("qwen3vlmoe",)  # are published with experts (in, out), which transformers saves (out, in)


def make_config(name: str) -> PreTrainedConfig:
    """Return the config of a model."""
    model_type, fields = MODELS[name]
    common = {} if "text_config" in fields else COMMON
    return CONFIG_MAPPING[model_type](**common | fields, dtype="bfloat16")


def make_model(name: str) -> PreTrainedModel:
    """Return a model in bfloat16, whose parameters depend on their names and shapes alone."""
    config = make_config(name)
    kind = AutoModelForImageTextToText if "vision_config" in config.sub_configs else AutoModelForCausalLM
    model: PreTrainedModel = kind.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            tensor.copy_(_numbers(key, tuple(tensor.shape)))
    return model


def make_checkpoint(name: str, folder: Path) -> Path:
    """Save a model as the hub has it, with the fields of its config by the names that it is published with."""
    model, fields = make_model(name), MODELS[name][1]
    model.save_pretrained(folder)
    if name in TRANSPOSED:
        _transpose_experts(folder / "model.safetensors")
    make_tokenizer().save_pretrained(folder)
    config = json.loads(model.config.to_json_string(use_diff=False))
    text = {"text_config": config["text_config"] | fields["text_config"]} if "text_config" in config else COMMON
    config |= text | {key: value for key, value in fields.items() if key != "text_config"}
    config |= {"architectures": [PUBLISHED_NAMES.get(name, type(model).__name__)]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _transpose_experts(path: Path) -> None:
    tensors = load_file(path)
    for key, tensor in tensors.items():
        if key.endswith((".experts.gate_up_proj", ".experts.down_proj")):
            tensors[key] = tensor.mT.contiguous()
    save_file(tensors, path, metadata={"format": "pt"})


@cache
def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with a few merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [
        ("t", "h"),
        ("th", "e"),
        ("Ġ", "the"),
        ("i", "n"),
        ("a", "n"),
        ("e", "r"),
        ("Ġ", "a"),
        ("o", "n"),
        ("Ġ", "Ġ"),
    ]
    tokens = [*SPECIAL, *alphabet, *("".join(merge) for merge in merges)]
    tokens += [f"<unused{number}>" for number in range(VOCABULARY - len(tokens))]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    first = SPECIAL[0]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=first, eos_token=first, pad_token=first, chat_template=TEMPLATE
    )


def _numbers(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    numbers = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape) * 0.25
    return torch.from_numpy(np.asarray(numbers)).to(torch.bfloat16)
