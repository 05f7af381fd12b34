"""A tiny configuration of every Mixture-of-Experts family of transformers that generates text."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from tests.towers import TOP, TOWER

SIZES: dict[str, Any] = {  # a family takes those that its config has
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "intermediate_size": 24,
    "moe_intermediate_size": 24,
    "moe_hidden_size": 16,
    "shared_expert_intermediate_size": 24,
    "shared_intermediate_size": 24,
    "num_experts": 8,
    "num_local_experts": 8,
    "n_routed_experts": 8,
    "moe_num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "sliding_window": 6,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_heads": 2,
    "linear_head_dim": 8,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "unpadded_vocab_size": 120,
    "index_n_heads": 24,  # a key that no head attends to scores zero, and the choice among such keys is chance
    "index_head_dim": 16,
    "index_topk": 4,
}
LATENT = {"num_key_value_heads": 4}
WINDOWS = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
HYBRID = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
DOTS3 = {
    **LATENT,
    "shared_experts_intermediate_size": 24,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 16,
    "swa_kv_lora_rank": 16,
    "swa_head_dim": 16,
    "swa_qk_nope_head_dim": 8,
    "swa_v_head_dim": 12,
}
LLAMA4 = {
    "intermediate_size_mlp": 48,
    "interleave_moe_layer_step": 2,
    "num_hidden_layers": 4,
    "attention_chunk_size": 6,
    "no_rope_layer_interval": 4,
    "floor_scale": 3,
}
SPARSE = {"mlp_layer_types": ["dense", "sparse", "sparse"]}
STEP = {**WINDOWS, **SPARSE, "num_sliding_attention_heads": 6, "share_expert_dim": 32}
GEMMA4 = {
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "enable_moe_block": True,
    "top_k_experts": 2,
    "hidden_size_per_layer_input": 0,
    "attention_k_eq_v": True,
}
NEMOTRON_H = {"layers_block_type": ["linear_attention", "moe", "full_attention", "moe"], "time_step_min": 1e-9}
QWEN4 = {
    "layer_types": ["linear_attention", "indexed_attention", "linear_attention"],
    "indexer_n_heads": 24,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 4,
    "indexer_compress_ratio": 2,
    "hc_lowrank": 8,
    "ple_layer_ids": [1],
    "ngram_vocab_size_base": 50,
    "split_ngram_parts": 1,
}
MINIMAX_M3 = {
    "layer_types": ["full_attention", "minimax_m3_sparse", "minimax_m3_sparse"],
    "index_n_heads": 2,
    "index_block_size": 16,
    "index_topk_blocks": 2,
}

INKLING = {
    "layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding"],
    "mlp_layer_types": ["dense", "sparse", "sparse"],
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_head_dim": 8,
    "sliding_window_size": 6,
    "d_rel": 4,
    "rel_extent": 20,
    "n_shared_experts": 2,
    "log_scaling_n_floor": 8,
}
INKLING_LOOP = INKLING | {
    "n_layers_per_attn_res_block": 1,
    "loop_layer_index_start": 1,
    "loop_layer_index_end": 2,
    "loop_num_passes": 2,
    "loop_gate_rank": 8,
}

RELATIVE = "attention with relative position biases"
INDEXED = "sparse-attention layers with an indexer"
REFERENCE = "layers that attend to the whole prompt and to a window of what follows it"
COMPRESSED = "compressed-attention layers"
ENCODER = "an encoder that reads the whole prompt before a decoder answers it"
MIXED = "experts whose router gives a token the scores of other tokens of its batch"
NORMED_RESULTS = "experts whose results each have a norm of their own before they are summed"
POOL_OF_ANOTHER = "layers that choose keys from a pool of an earlier layer"


@dataclass(frozen=True)
class Family:
    """The configuration of a family besides ``SIZES``, and the reason why it is refused, if it is."""

    special: dict[str, Any] = field(default_factory=dict)
    refusal: str | None = None
    sequential: str | None = None  # why its requests run one after the other, if they do
    by_sequence: str | None = None  # why its attention runs sequence by sequence, if it does


def _text(special: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of a multimodal family's text."""
    return {"text_config": special}


def _mrope(*section: int) -> dict[str, Any]:
    """Return rotary positions of several axes, with this many frequencies each."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0, "mrope_section": section}
    return {"rope_parameters": rope}


FAMILIES = {  # by the model type of its text
    "afmoe": Family(WINDOWS),
    "aria": Family(),
    "aria_text": Family(),
    "axk1": Family(LATENT),
    "axk2": Family(LATENT),
    "bailing_hybrid": Family({**LATENT, **HYBRID}),
    "beam": Family({**WINDOWS, **SPARSE}),
    "cohere2_moe": Family(WINDOWS),
    "dbrx": Family(
        {
            "d_model": 32,
            "n_heads": 4,
            "n_layers": 3,
            "max_seq_len": 256,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 0.5, "rope_theta": 10000.0},
            "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 8, "moe_top_k": 2, "hidden_size": 32},
        }
    ),
    "deepseek_ocr2": Family(_text({"mlp_layer_types": ["dense", "sparse", "sparse"]})),
    "deepseek_v2": Family(LATENT),
    "deepseek_v3": Family(LATENT),
    "deepseek_v32": Family(LATENT),
    "deepseek_v4": Family(
        {
            "layer_types": ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"],
            "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 3},
            "index_topk": 2,
            "mlp_layer_types": ["hash_moe", "moe", "moe"],
            "qk_rope_head_dim": 4,
        },
        by_sequence=COMPRESSED,
    ),
    "diffusion_gemma": Family(_text(GEMMA4), "transformers has no diffusion_gemma that writes text token after token"),
    "doge": Family({"is_moe": True, "num_experts": 16}, MIXED),
    "dots1": Family({**LATENT, **WINDOWS}),
    "dots3_note": Family({"text_config": DOTS3, "vision_config": {"pyramid_num_routed": [-1, 4]}}),
    "dots3_note_text": Family(DOTS3),
    "ergo": Family({**WINDOWS, **SPARSE, "first_dense_intermediate_size": 48}, NORMED_RESULTS),
    "ernie4_5_moe": Family(),
    "ernie4_5_vl_moe": Family(_text({"moe_intermediate_size": [24, 16], **_mrope(1, 1, 2)})),
    "exaone_moe": Family(WINDOWS),
    "flex_olmo": Family(),
    "flint": Family({"mlp_only_layers": [0], **WINDOWS}),
    "gemma4": Family(_text({**GEMMA4, "use_bidirectional_attention": "vision"})),
    "gemma4_text": Family(GEMMA4),
    "glm46v": Family(
        {
            "text_config": {"model_type": "glm4v_moe_text", **_mrope(1, 1, 2)},
            "vision_config": {"model_type": "glm4v_moe_vision"},
        }
    ),
    "glm4_moe": Family(),
    "glm4_moe_lite": Family(LATENT),
    "glm4v_moe": Family(_text(_mrope(1, 1, 2))),
    "glm5_next": Family(
        _text(
            {
                **LATENT,
                "qk_rope_head_dim": 0,
                "index_kpool": 2,
                **SPARSE,
                "layer_types": ["linear_attention", "indexed_attention", "linear_attention"],
            }
        ),
    ),
    "glm_moe_dsa": Family({**LATENT, "indexer_types": ["full", "shared", "full"]}),
    "gpt_oss": Family(WINDOWS),
    "granitemoe": Family(),
    "granitemoe_swa": Family(WINDOWS),
    "granitemoehybrid": Family({"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, **HYBRID}),
    "granitemoeshared": Family(),
    "hunyuan_v1_moe": Family(),
    "hy_v3": Family(),
    "hy_v4": Family(LATENT),
    "hy_v4_vl": Family(_text({**LATENT, **_mrope(2, 1, 1)})),
    "inkling2": Family(_text(INKLING), by_sequence=RELATIVE),
    "inkling2_loop": Family(_text(INKLING_LOOP), by_sequence=RELATIVE),
    "inkling2_loop_text": Family(INKLING_LOOP, by_sequence=RELATIVE),
    "inkling2_text": Family(INKLING, by_sequence=RELATIVE),
    "inkling_mm_model": Family(
        {"vision_config": {"num_hidden_layers": 12, "patch_size": 2}, "text_config": INKLING}, by_sequence=RELATIVE
    ),
    "inkling_text": Family(INKLING, by_sequence=RELATIVE),
    "internvl": Family(_text({"model_type": "qwen3_moe"})),
    "jamba": Family({"attn_layer_period": 2, "attn_layer_offset": 1}),
    "jetmoe": Family({"kv_channels": 8}),
    "kimi_k25": Family(_text(LATENT)),
    "kimi_linear": Family({**LATENT, **HYBRID}),
    "kolibri1": Family(WINDOWS),
    "kolibri1_1": Family(
        {
            "head_dim": 16,
            "layer_types": ["sliding_attention", "indexed_attention", "indexed_attention"],
            "mlp_only_layers": [0],
            "mlp_only_intermediate_size": 48,
            "index_num_heads": 2,
        },
        POOL_OF_ANOTHER,
    ),
    "laguna": Family(WINDOWS),
    "lara_mini": Family(),
    "lfm2_moe": Family({"layer_types": ["conv", "full_attention", "conv"]}),
    "llama4": Family({**_text(LLAMA4), "vision_config": {"intermediate_size": 64}}),
    "llama4_text": Family(LLAMA4),
    "longcat_flash": Family(
        {**LATENT, "ffn_hidden_size": 48, "expert_ffn_hidden_size": 24, "num_layers": 2, "zero_expert_num": 3}
    ),
    "mellum": Family(WINDOWS),
    "mimo_v2_flash": Family({"head_dim": 16, **WINDOWS, **SPARSE}),
    "minicpm5_moe": Family(SPARSE),
    # transformers' cache counts no tokens if the first layer is a recurrent one
    "minimax": Family(
        {
            "layer_types": ["full_attention", "linear_attention", "full_attention"],
            "full_attn_alpha_factor": 1.5,
            "linear_attn_alpha_factor": 2.5,
            "mlp_alpha_factor": 3.5,
        }
    ),
    "minimax_m2": Family(),
    "minimax_m3_vl": Family(_text(MINIMAX_M3)),
    "minimax_m3_vl_text": Family(MINIMAX_M3),
    "mistral3": Family(_text({"model_type": "mistral4", **LATENT})),
    "mistral4": Family(LATENT),
    "mistral_large4": Family(_text(LATENT)),
    "mixtral": Family(),
    "muse_spark": Family(),
    "nemo_speechlm": Family(
        {
            "text_config": NEMOTRON_H,
            "audio_config": {"diarization_config": {"head_config": {"audio_hidden_size": 16}}},
            "word_timestamp_config": {"blank_token_id": 63},
        }
    ),
    "nemotron_h": Family(NEMOTRON_H),
    "nemotron_h_omni": Family(
        {
            "text_config": NEMOTRON_H,
            "vision_config": {"video_temporal_patch_size": 2},
            "vision_hidden_size": 16,
            "audio_config": None,
        }
    ),
    "nllb-moe": Family(
        {
            "d_model": 32,
            "encoder_layers": 4,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 24,
            "encoder_sparse_step": 2,
            "decoder_layers": 2,
            "decoder_attention_heads": 4,
            "decoder_ffn_dim": 24,
            "decoder_sparse_step": 2,
            "moe_eval_capacity_token_fraction": 0.4,  # some of longer prompts are dropped
        },
        sequential=ENCODER,
    ),
    "olmoe": Family(),
    "param2moe": Family(),
    "phimoe": Family(),
    "qwen2_moe": Family({"use_sliding_window": True, **WINDOWS}),
    "qwen3_5_moe": Family(_text(HYBRID)),
    "qwen3_5_moe_text": Family(HYBRID),
    "qwen3_moe": Family(),
    "qwen3_next": Family(HYBRID),
    "qwen3_omni_moe": Family(
        {
            "thinker_config": _text({**_mrope(2, 1, 1), "sliding_window": None}) | {"vision_start_token_id": 103},
            "enable_audio_output": False,
        }
    ),
    "qwen3_omni_moe_thinker": Family(
        _text({**_mrope(2, 1, 1), "sliding_window": None}) | {"vision_start_token_id": 103}
    ),
    "qwen3_vl_moe": Family(_text(_mrope(2, 1, 1))),
    "qwen4_exp": Family(_text(QWEN4), by_sequence=INDEXED),
    "qwen4_exp_text": Family(QWEN4, by_sequence=INDEXED),
    "sarvam_mla": Family(LATENT),
    "sarvam_moe": Family(),
    "solar_open": Family(),
    "step3p5": Family(STEP),
    "step3p7": Family(_text(STEP)),
    "switch_transformers": Family(
        {
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 24,
            "num_layers": 4,  # transformers can't continue where the decoder has another number
            "num_sparse_encoder_layers": 2,
            "num_decoder_layers": 4,
            "num_sparse_decoder_layers": 2,
            "num_heads": 4,
            "num_experts": 4,
            "expert_capacity": 2,  # the others of longer prompts are dropped
            "decoder_start_token_id": 0,
        },
        sequential=ENCODER,
    ),
    "unlimited_ocr": Family(by_sequence=REFERENCE),
    "zaya": Family({"num_experts_per_tok": 1}),
}


# Multimodal families whose text is another one's here: the same layers read weights of other names.
WITH_TEXT_OF_ANOTHER = frozenset(
    {
        "aria",
        "dots3_note",
        "gemma4",
        "glm46v",
        "inkling2",
        "inkling2_loop",
        "inkling_mm_model",
        "internvl",
        "kimi_k25",
        "llama4",
        "minimax_m3_vl",
        "mistral3",
        "nemo_speechlm",
        "nemotron_h_omni",
        "qwen3_5_moe",
        "qwen3_omni_moe",
        "qwen4_exp",
        "step3p7",
    }
)


def make_config(model_type: str) -> PreTrainedConfig:
    """Return the tiny configuration of one of the families above."""
    config_class = CONFIG_MAPPING[model_type]
    return _make(config_class, FAMILIES[model_type].special, TOP if _holds_text(config_class) else SIZES)


def make_unusual_config() -> PreTrainedConfig:
    """Return one whose modules run: its rotary positions depend on the length of a sequence."""
    config = make_config("qwen3_moe")
    config.rope_parameters |= {"rope_type": "dynamic", "factor": 4.0}
    return config


def make_small_config(model_type: str) -> PreTrainedConfig:
    """Return the same with half as many heads, and with two layers where that leaves each kind, for interpreters."""
    config = make_config(model_type)
    config.num_attention_heads //= 2
    config.num_key_value_heads //= 2
    if model_type not in {"gemma4_text", "lfm2_moe"}:  # layers have settings of their own; two are dense
        config.num_hidden_layers = 2
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[-2:]
    return config


def _make(config_class: Any, special: dict[str, Any], sizes: dict[str, Any]) -> PreTrainedConfig:
    """Make a config with the sizes that it has, and its parts likewise; ``special`` takes precedence, in parts too."""
    names = {attribute.name for attribute in fields(config_class)}
    values = {name: size for name, size in sizes.items() if name in names} | special
    for name, kind in config_class.sub_configs.items():
        given = special.get(name, {})
        if isinstance(given, dict) and hasattr(kind, "model_type") | (kind is AutoConfig):
            values[name] = _make_part(config_class, name, dict(given))
    return config_class(**values)


def _make_part(config_class: Any, name: str, special: dict[str, Any]) -> PreTrainedConfig:
    kind = config_class.sub_configs[name]
    if kind is AutoConfig:
        kind = CONFIG_MAPPING[special.pop("model_type", None) or config_class.sub_configs_defaults[name].model_type]
    return _make(kind, special, TOP if _holds_text(kind) else SIZES if name == "text_config" else TOWER)


def _holds_text(config_class: Any) -> bool:
    return bool({"text_config", "thinker_config"} & set(config_class.sub_configs))
