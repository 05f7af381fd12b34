"""Variants of tiny checkpoints, and checkpoints that have the variants' weights as their own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from expert_store import ExpertStore, find_shards, read_index
from server.model.checkpoint.read_config import read_config
from server.model.chunk_weights import ChunkWeights
from server.model.model_building import build_model
from server.model.opening.variant_files import BaseModel, VariantFiles, read_variant
from server.model.trunk.fingerprint import fingerprint

Tensors = dict[str, torch.Tensor]


def read_tensors(folder: Path) -> Tensors:
    return {name: tensor for shard in find_shards(folder) for name, tensor in load_file(shard.name).items()}


def other(tensors: Mapping[str, torch.Tensor], chosen: Callable[[str], bool], seed: int = 1) -> Tensors:
    """Return other random weights for the chosen tensors."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(tensor.shape, generator=generator) * tensor.float().std()).to(tensor.dtype)
        for name, tensor in tensors.items()
        if chosen(name)
    }


def save_variant(folder: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata)
    return folder


def save_changed(folder: Path, base: Path, tensors: Tensors, **config: Any) -> Path:
    """Save a checkpoint that is the base with other tensors and settings."""
    shutil.copytree(base, folder)
    for shard in find_shards(folder):
        Path(shard.name).unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    save_file({**read_tensors(base), **tensors}, folder / "model.safetensors", {"format": "pt"})
    if config:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


def base_of(folder: Path, trunk: Any, dtype: torch.dtype = torch.float32, *, is_pack: bool = False) -> BaseModel:
    config_folder = folder
    index = {} if is_pack else read_index(find_shards(folder))
    model = build_model(read_config(config_folder), dtype)
    return BaseModel(model, trunk.catalog, trunk.routers, fingerprint(trunk), index)


def load(store: ExpertStore, files: VariantFiles) -> ChunkWeights:
    store.add_variant(files.variant.version, files.recipes)
    return ChunkWeights(variant=files.variant)


def read(folder: Path, base: BaseModel, name: str = "law", version: str = "law@1") -> VariantFiles:
    return read_variant(folder, name, version, base)
