"""Tiny random checkpoints of real architectures, saved as the hub saves them."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING

import server.model.step3p5  # noqa: F401  (registers its class)
from tests.families import make_config

COMMON = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

LATENT = {
    **COMMON,
    "num_key_value_heads": 4,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
}

CONFIGS = {
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **COMMON,
        head_dim=8,
        intermediate_size=48,
        moe_intermediate_size=24,
        num_experts=8,
        num_experts_per_tok=2,
        norm_topk_prob=True,
    ),
    "mixtral": lambda: transformers.MixtralConfig(
        **COMMON, intermediate_size=24, num_local_experts=6, num_experts_per_tok=2, sliding_window=None
    ),
    "olmoe": lambda: transformers.OlmoeConfig(**COMMON, intermediate_size=24, num_experts=8, num_experts_per_tok=3),
    "gpt_oss": lambda: transformers.GptOssConfig(
        **COMMON,
        head_dim=8,
        intermediate_size=32,
        num_local_experts=8,
        num_experts_per_tok=2,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "deepseek_v3": lambda: transformers.DeepseekV3Config(**LATENT, n_group=2, topk_group=1),
    "deepseek_v2": lambda: transformers.DeepseekV2Config(**LATENT, topk_method="greedy"),
    "mimo_v2_flash": lambda: transformers.MiMoV2FlashConfig(
        **COMMON,
        head_dim=16,
        v_head_dim=12,
        intermediate_size=48,
        moe_intermediate_size=24,
        n_routed_experts=8,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        mlp_layer_types=["dense", "sparse", "sparse"],
    ),
}


@dataclass(frozen=True)
class _Made:
    """A checkpoint, and what making it changes beside."""

    folder: Path
    random_state: torch.Tensor
    architectures: list[str]  # of the config
    dtype: Any


_MADE: dict[tuple[Any, ...], _Made] = {}


def make_checkpoint(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Save a random model of one of the architectures above, or of one of the families."""
    return save_checkpoint(CONFIGS[name]() if name in CONFIGS else make_config(name), folder, dtype)


TABLE = "tid2eid"  # buffer: the experts of tokens (DeepSeek-V4)


def save_checkpoint(
    config: transformers.PreTrainedConfig,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    *,
    as_published: bool = True,
) -> Path:
    """Save a random model whose weights are large enough for its layers to matter.

    Each is made once in a process, and then copied.

    Args:
        as_published: with the hub's names and shapes; else with those of transformers' modules.
    """
    key = (type(config).__name__, config.to_json_string(use_diff=False), dtype, as_published)
    if key not in _MADE:
        own = Path(_folder().name) / str(len(_MADE))
        _write(config, own, dtype, as_published=as_published)
        _MADE[key] = _Made(own, torch.get_rng_state(), config.architectures, config.dtype)
    made = _MADE[key]
    shutil.copytree(made.folder, folder, dirs_exist_ok=True)
    torch.set_rng_state(made.random_state)
    config.architectures, config.dtype = made.architectures, made.dtype
    return folder


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="greenroom-checkpoints-")


def _write(config: transformers.PreTrainedConfig, folder: Path, dtype: torch.dtype, *, as_published: bool) -> None:
    """Buffers of more than one dimension are constants of the architecture and stay as they are."""
    torch.manual_seed(0)
    model = transformers_class(config).from_config(config)
    with torch.no_grad():
        constants = {name for name, tensor in model.named_buffers() if tensor.ndim > 1}
        for name, tensor in model.state_dict().items():
            if name.endswith(TABLE):
                experts = torch.rand(len(tensor), config.get_text_config().n_routed_experts).argsort(1)
                tensor.copy_(experts[:, : tensor.shape[1]])
            if name in constants or not tensor.is_floating_point():
                continue
            if tensor.ndim >= 2:
                tensor.normal_(std=tensor.shape[-1] ** -0.5)
            elif tensor.ndim == 1:
                tensor.add_(torch.randn_like(tensor) * 0.1)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():  # a tower may have complex ones
            tensor.data = tensor.data.to(dtype)
    model.save_pretrained(folder, save_original_format=as_published)


def transformers_class(config: transformers.PreTrainedConfig) -> Any:
    """Return the class by which transformers loads a checkpoint: as a multimodal model, if it is one."""
    if config.is_encoder_decoder:
        return transformers.AutoModelForSeq2SeqLM
    is_multimodal = type(config) in MODEL_FOR_MULTIMODAL_LM_MAPPING
    return transformers.AutoModelForMultimodalLM if is_multimodal else transformers.AutoModelForCausalLM


def load_transformers_model(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Load a checkpoint by transformers; of several models, the one that writes text."""
    config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers_class(config).from_pretrained(folder, dtype=dtype).eval()
    return getattr(model, "thinker", model)
