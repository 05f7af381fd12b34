"""Table of the model families that ``benchmarks.compare --family`` measures, with the sizes of their checkpoints.

Each has the proportions of a published model at 1 to 2 GB in bfloat16.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.comparison.plan import FORMATS, GGUF_FORMATS

VOCABULARY = 32_000
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 1024,
    "num_hidden_layers": 8,
    "max_position_embeddings": 40_960,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
GROUPED = {"num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64}
LATENT = {
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "q_lora_rank": 512,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "intermediate_size": 3072,
    "moe_intermediate_size": 512,
    "n_routed_experts": 64,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 1,
    "rope_interleave": True,
    "scoring_func": "sigmoid",  # which the converter needs, and transformers does not read
}
INDEXER = {"n_group": 1, "topk_group": 1, "index_n_heads": 8, "index_head_dim": 128, "index_topk": 512}
DELTA_NET = {
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "linear_num_key_heads": 8,
    "linear_num_value_heads": 16,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "moe_intermediate_size": 256,
    "shared_expert_intermediate_size": 256,
    "num_experts": 128,
    "num_experts_per_tok": 8,
}
GPT_OSS = {
    **GROUPED,
    "intermediate_size": 1024,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "sliding_window": 128,
}


@dataclass(frozen=True)
class Family:
    """A model type, the fields of its config besides the common ones, and how it is compared."""

    model_type: str
    fields: Mapping[str, Any]
    about: str  # in the published model's proportions
    is_mxfp4: bool = False  # the experts are stored as MXFP4, and compared so
    has_peer: bool = True  # llama.cpp runs it

    def compared_formats(self, words: Collection[str]) -> list[str]:
        """Return the formats to compare: those of the checkpoint, or those among the words of ``--only``."""
        if self.is_mxfp4:
            return ["mxfp4"]
        return [name for name in (*FORMATS, *GGUF_FORMATS) if name in words] or ["bf16"]


FAMILIES = {
    "olmoe": Family(
        "olmoe",
        {
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "intermediate_size": 512,
            "num_experts": 64,
            "num_experts_per_tok": 8,
        },
        "8 layers, 64 experts of 512, 8 chosen; 16 heads of keys",
    ),
    "qwen3_moe": Family(
        "qwen3_moe",
        {
            **GROUPED,
            "intermediate_size": 3072,
            "moe_intermediate_size": 512,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
        },
        "8 layers, 64 experts of 512, 8 chosen; 16 heads, 4 of keys",
    ),
    "gpt_oss": Family("gpt_oss", GPT_OSS, "8 layers, 32 experts of 1024, 4 chosen; every second window 128; sinks"),
    "gpt_oss_mxfp4": Family(
        "gpt_oss",
        {**GPT_OSS, "num_hidden_layers": 24},
        "the same with 24 layers, experts in MXFP4 as published",
        is_mxfp4=True,
    ),
    "deepseek_v3": Family(
        "deepseek_v3",
        {**LATENT, "n_group": 8, "topk_group": 4},
        "8 layers (1 dense of 3072), 64 experts of 512, 8 chosen in 4 of 8 groups, 1 shared; latent of 512 and 64",
    ),
    "qwen3_next": Family(
        "qwen3_next",
        {**DELTA_NET, "intermediate_size": 3072},
        "8 layers (2 of attention, 6 gated delta nets of 16 heads of 128), 128 experts of 256, 8 chosen, 1 shared",
    ),
    "qwen3_5_moe": Family(
        "qwen3_5_moe_text",
        {**DELTA_NET, "num_hidden_layers": 8},
        "the same sizes as qwen3_next; the multimodal model's text part",
    ),
    "lfm2_moe": Family(
        "lfm2_moe",
        {
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "num_hidden_layers": 10,
            "intermediate_size": 3584,
            "moe_intermediate_size": 896,
            "num_experts": 32,
            "num_experts_per_tok": 4,
            "num_dense_layers": 2,
            "layer_types": ["full_attention" if index in (2, 5, 8) else "conv" for index in range(10)],
            "tie_word_embeddings": True,
        },
        "10 layers (3 of attention, 7 short convolutions; 2 dense of 3584), 32 experts of 896, 4 chosen",
    ),
    "nemotron_h": Family(
        "nemotron_h",
        {
            **GROUPED,
            "intermediate_size": 640,
            "moe_intermediate_size": 640,
            "moe_shared_expert_intermediate_size": 1280,
            "n_routed_experts": 96,
            "n_shared_experts": 1,
            "num_experts_per_tok": 6,
            "n_group": 1,
            "topk_group": 1,
            "mamba_num_heads": 32,
            "mamba_head_dim": 64,
            "ssm_state_size": 128,
            "n_groups": 8,
            "num_hidden_layers": 14,
            "layers_block_type": ["mamba", "moe", "mamba", "moe", "mamba", "attention", "moe"] * 2,
        },
        "14 blocks (6 Mamba-2 of 32 heads of 64, 2 of attention, 6 of 96 experts of 640, 6 chosen, 1 shared)",
    ),
    "jamba": Family(
        "jamba",
        {
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "intermediate_size": 3584,
            "num_experts": 16,
            "num_experts_per_tok": 2,
            "mamba_dt_rank": 64,
        },
        "8 layers (1 of attention, 7 Mamba-1 of 2048 channels; 4 dense of 3584), 16 experts of 3584, 2 chosen",
    ),
    "gemma4": Family(
        "gemma4_text",
        {
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "global_head_dim": 256,
            "num_global_key_value_heads": 2,
            "num_hidden_layers": 12,
            "layer_types": ["full_attention" if index in (5, 11) else "sliding_attention" for index in range(12)],
            "sliding_window": 1024,
            "attention_k_eq_v": True,
            "intermediate_size": 768,
            "moe_intermediate_size": 256,
            "num_experts": 64,
            "top_k_experts": 8,
            "enable_moe_block": True,
            "hidden_size_per_layer_input": 0,
            "num_kv_shared_layers": 0,
            "tie_word_embeddings": True,
        },
        "12 layers (2 global, 10 with window 1,024), 64 experts of 256, 8 chosen, beside a dense part of 768",
    ),
    "granitemoehybrid": Family(
        "granitemoehybrid",
        {
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "intermediate_size": 512,
            "shared_intermediate_size": 1024,
            "num_local_experts": 64,
            "num_experts_per_tok": 6,
            "mamba_n_heads": 32,
            "mamba_d_head": 64,
            "mamba_d_state": 128,
            "mamba_n_groups": 1,
            "mamba_expand": 2,
            "layer_types": ["attention" if index in (3, 7) else "mamba" for index in range(8)],
            "position_embedding_type": "nope",
        },
        "8 layers (2 of attention, 6 Mamba-2 of 32 heads of 64), 64 experts of 512, 6 chosen, 1 shared of 1024",
    ),
    "llama4": Family(
        "llama4_text",
        {
            **GROUPED,
            "intermediate_size": 2048,
            "intermediate_size_mlp": 4096,
            "num_local_experts": 16,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 1,
            "attention_chunk_size": 2048,
        },
        "8 layers (2 without positions), 16 experts of 2048, 1 chosen, 1 shared; chunks of 2,048",
    ),
    "deepseek_v32": Family(
        "deepseek_v32",
        {**LATENT, **INDEXER},
        "deepseek_v3's sizes with an indexer of 8 heads of 128 that chooses 512 tokens",
        has_peer=False,
    ),
    "glm_moe_dsa": Family("glm_moe_dsa", {**LATENT, **INDEXER}, "the same", has_peer=False),
    "minimax_m3": Family(
        "minimax_m3_vl_text",
        {
            **GROUPED,
            "intermediate_size": 512,
            "dense_intermediate_size": 3072,
            "shared_intermediate_size": 512,
            "num_local_experts": 64,
            "num_experts_per_tok": 8,
            "rotary_dim": 32,
            "layer_types": ["full_attention", *["minimax_m3_sparse"] * 7],
            "mlp_layer_types": ["dense", *["sparse"] * 7],
            "index_n_heads": 4,
            "index_head_dim": 64,
            "index_block_size": 128,
            "index_topk_blocks": 4,
        },
        "8 layers (1 dense, and of all keys), 64 experts of 512, 8 chosen, 1 shared; 4 blocks of 128 keys",
        has_peer=False,
    ),
}
