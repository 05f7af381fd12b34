"""Small random LoRA adapters, trained and saved by nobody but PEFT."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.checkpoints import load_transformers_model

FUSED = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def make_adapter(
    checkpoint: Path, folder: Path, *, seed: int = 1, prepare: Callable[[Any], None] = lambda _: None, **config: Any
) -> Any:
    """Save an adapter with random weights, and return PEFT's model with it.

    Args:
        prepare: called with transformers' model before PEFT changes it.
    """
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415  it takes seconds

    settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **config}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = load_transformers_model(checkpoint)
        prepare(base)
        model = get_peft_model(base, LoraConfig(**settings))
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
        model.save_pretrained(folder)
    return model.eval()


def change_config(folder: Path, **values: Any) -> None:
    """Change settings in an adapter's configuration."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def write_adapter(folder: Path, value: float = 1.0, *, num_layers: int = 1, inputs: int = 32, rank: int = 4) -> Path:
    """Write an adapter on ``model.layers.N.self_attn.q_proj`` whose numbers are all the same, without PEFT's help."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {}
    for layer in range(num_layers):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{name}.lora_A.weight"] = torch.full((rank, inputs), value)
        tensors[f"{name}.lora_B.weight"] = torch.full((inputs, rank), value)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder
