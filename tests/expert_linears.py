"""Splits the experts of a checkpoint into linear layers, as quantisers do (llm-compressor's ``linearize_moe``)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def split_experts(modules: Mapping[str, Any], plain: Path, out: Path) -> Path:
    """Copy a checkpoint of a family that transformers saved with the names of its modules, and split its experts."""
    shutil.copytree(plain, out)
    tensors = load_file(plain / "model.safetensors")
    split = {}
    for name, tensor in tensors.items():
        owner, _, parameter = name.rpartition(".")
        if owner in modules:
            split |= dict(_linears(modules[owner], owner, parameter, tensor))
        else:
            split[name] = tensor
    save_file(
        {name: tensor.contiguous() for name, tensor in split.items()}, out / "model.safetensors", {"format": "pt"}
    )
    return out


def _linears(module: Any, owner: str, parameter: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    is_bias = parameter.endswith("_bias")
    kind, projection = ("bias" if is_bias else "weight"), parameter.removesuffix("_bias")
    for expert, value in enumerate(tensor):
        out_in = value.mT if module.is_transposed and not is_bias else value
        halves = {projection: out_in}
        if projection == "gate_up_proj":
            gate, up = out_in.chunk(2) if getattr(module, "is_concatenated", True) else (out_in[::2], out_in[1::2])
            halves = {"gate_proj": gate, "up_proj": up}
        for name, half in halves.items():
            yield f"{owner}.{expert}.{name}.{kind}", half.clone()
