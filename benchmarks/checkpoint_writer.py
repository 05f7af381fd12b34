"""Writer of random Qwen3-MoE checkpoints, layer by layer, in the hub's layout: one tensor per expert and projection.

The tokenizer is the bundled model's; a checkpoint may have fewer tokens than its vocabulary.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Qwen3MoeConfig

Tensors = dict[str, torch.Tensor]

BUNDLED = Path(__file__).parent.parent / "server" / "demo" / "model"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


def write_checkpoint(
    folder: Path, config: Qwen3MoeConfig, non_layer_tensors: Callable[[], Tensors], layer: Callable[[int], Tensors]
) -> None:
    """Write a checkpoint in bfloat16, with its config last; a folder that has a config is left unchanged.

    Args:
        non_layer_tensors: Returns the tensors that belong to no layer.
        layer: Returns the tensors of one layer, named without their prefix.
    """
    if (folder / "config.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}

    def save(file: str, tensors: Tensors) -> None:
        save_file({name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}, folder / file)
        weight_map.update(dict.fromkeys(tensors, file))

    save("model-trunk.safetensors", non_layer_tensors())
    for index in range(config.num_hidden_layers):
        tensors = {f"model.layers.{index}.{name}": tensor for name, tensor in layer(index).items()}
        save(f"model-layer-{index:02}.safetensors", tensors)
    for file in TOKENIZER_FILES:
        shutil.copy(BUNDLED / file, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config.save_pretrained(folder)


def layer_norms(config: Qwen3MoeConfig) -> Tensors:
    """Return the norms of a layer, which are ones."""
    lengths = {
        "input_layernorm": config.hidden_size,
        "post_attention_layernorm": config.hidden_size,
        "self_attn.q_norm": config.head_dim,
        "self_attn.k_norm": config.head_dim,
    }
    return {f"{name}.weight": torch.ones(length) for name, length in lengths.items()}


def layer_matrices(config: Qwen3MoeConfig, matrix: Callable[[str, int, int], torch.Tensor]) -> Tensors:
    """Return the matrices of a layer, each created by ``matrix(projection name, rows, columns)``."""
    hidden, intermediate = config.hidden_size, config.moe_intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    shapes = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate": (config.num_experts, hidden),
    }
    for expert in range(config.num_experts):
        shapes[f"mlp.experts.{expert}.gate_proj"] = (intermediate, hidden)
        shapes[f"mlp.experts.{expert}.up_proj"] = (intermediate, hidden)
        shapes[f"mlp.experts.{expert}.down_proj"] = (hidden, intermediate)
    return {
        f"{name}.weight": matrix(name.rpartition(".")[2], rows, columns) for name, (rows, columns) in shapes.items()
    }
