"""Mixtures of adapters with a gate, written without training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.adapters import write_adapter


def write_gate(folder: Path, vectors: Mapping[str, torch.Tensor], **config: Any) -> Path:
    """Write a gate over adapters that are in the folder already.

    Args:
        vectors: ``(adapters, inputs)`` by the name of a linear layer.
    """
    save_file({name: each.contiguous() for name, each in vectors.items()}, folder / "gate_model.safetensors")
    (folder / "gate_config.json").write_text(json.dumps({"top_k": 1, **config}))
    return folder


def write_mixture(folder: Path, values: Mapping[str, float], *, inputs: int = 32, **config: Any) -> Path:
    """Write adapters as ``write_adapter`` does, one for each value, and a gate over them, which likes later ones."""
    for name, value in values.items():
        write_adapter(folder / name, value, inputs=inputs)
    rows = torch.arange(len(values), dtype=torch.float32).unsqueeze(1).expand(-1, inputs)
    return write_gate(folder, {"model.layers.0.self_attn.q_proj": rows}, **{"adapters": [*values], **config})
