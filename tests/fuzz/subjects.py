"""The models of the traces: tiny checkpoints, each with two adapters and two expert variants."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.byte_tokenizer import save_byte_tokenizer
from tests.checkpoints import CONFIGS, save_checkpoint
from tests.families import make_config
from tests.server.model.variants import other, read_tensors, save_variant

FAMILIES = {  # and why they are here
    "qwen3_moe": "native layers",
    "gpt_oss": "native layers with sliding windows",
    "deepseek_v3": "latent attention",
    "qwen3_next": "recurrent layers",
    "jamba": "recurrent layers of another kind",
    "mimo_v2_flash": "sliding windows of transformers' modules",
    "llama4_text": "chunked attention",
    "deepseek_v32": "an indexer",
    "hy_v4": "residual streams of several rows",
}
NATIVE = ("qwen3_moe", "gpt_oss")
VOCABULARY = 256  # bytes
ADAPTERS = ("a1", "a2")
VARIANTS = ("v1", "v2")
RANK = 4


def make_subject(family: str, root: Path) -> Path:
    """Write a model with its adapters and variants, once, and return their folder."""
    folder = root / family
    if (folder / "complete").exists():
        return folder
    config = CONFIGS[family]() if family in CONFIGS else make_config(family)
    config.vocab_size = VOCABULARY
    save_checkpoint(config, folder / "model")
    save_byte_tokenizer(folder / "model")
    tensors = read_tensors(folder / "model")
    for seed, name in enumerate(VARIANTS, start=1):
        save_variant(folder / "experts" / name, other(tensors, lambda tensor: ".experts." in tensor, seed))
    for seed, name in enumerate(ADAPTERS, start=1):
        save_adapter(folder / "adapters" / name, tensors, seed)
    (folder / "complete").touch()
    return folder


def save_adapter(folder: Path, tensors: dict[str, torch.Tensor], seed: int) -> None:
    """Save a random adapter of the projections after attention, which every family has."""
    generator, matrices = torch.Generator().manual_seed(seed), {}
    for name, tensor in tensors.items():
        if name.endswith("self_attn.o_proj.weight"):
            before = f"base_model.model.{name.removesuffix('.weight')}"
            outputs, inputs = tensor.shape
            matrices[f"{before}.lora_A.weight"] = torch.randn((RANK, inputs), generator=generator) * 0.3
            matrices[f"{before}.lora_B.weight"] = torch.randn((outputs, RANK), generator=generator) * 0.3
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": ["o_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(matrices, folder / "adapter_model.safetensors")
