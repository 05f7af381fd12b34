"""The tiny models of ``tests/gguf/files``: configs, and parameters that depend on their names alone."""

from __future__ import annotations

import json
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
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
MODELS: dict[str, tuple[str, dict[str, Any]]] = {  # the model type and the fields of each file
    "qwen2moe": ("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 64, "head_dim": 8}),
    "qwen3moe": ("qwen3_moe", {**EXPERTS, "head_dim": 16, "norm_topk_prob": True}),
    "qwen3next": ("qwen3_next", DELTA_NET),
    "qwen35moe": ("qwen3_5_moe_text", DELTA_NET),
    "olmoe": ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 4}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}),
    "gpt-oss": ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 8}),
    "deepseek-v2": ("deepseek_v2", {**LATENT, "topk_method": "greedy", "n_group": 1, "topk_group": 1}),
    "deepseek-v3": ("deepseek_v3", {**LATENT, "n_group": 2, "topk_group": 1, "scoring_func": "sigmoid"}),
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


def make_config(name: str) -> PreTrainedConfig:
    """Return the config of a model."""
    model_type, fields = MODELS[name]
    return CONFIG_MAPPING[model_type](**COMMON | fields, dtype="bfloat16")


def make_model(name: str) -> PreTrainedModel:
    """Return a model in bfloat16, whose parameters depend on their names and shapes alone."""
    model: PreTrainedModel = AutoModelForCausalLM.from_config(make_config(name), dtype=torch.bfloat16)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            tensor.copy_(_numbers(key, tuple(tensor.shape)))
    return model


def make_checkpoint(name: str, folder: Path) -> Path:
    """Save a model as the hub has it, with the fields of its config by the names that it is published with."""
    model = make_model(name)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    config = json.loads(model.config.to_json_string(use_diff=False)) | COMMON | MODELS[name][1]
    config |= {"architectures": [type(model).__name__]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


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
