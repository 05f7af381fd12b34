"""Checkpoints of published models whose bytes are made when they are read."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedConfig
from transformers.core_model_loading import revert_weight_conversion

from expert_store import FileName, LocalFolder
from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.model_building import build_model
from tests.full_width.made_files import MadeFolder, safetensors_file
from tests.full_width.stored_formats import STORED_FORMATS, Model


def folder_checkpoint(config: PreTrainedConfig, format_name: str, folder: Path) -> FolderCheckpoint:
    """Return a checkpoint in safetensors.

    Args:
        format_name: see ``STORED_FORMATS``.
        folder: an empty one, for the config.
    """
    form = STORED_FORMATS[format_name]
    shapes, model = published_shapes(config)
    tensors = [tensor for name, shape in shapes.items() for tensor in form.tensors(name, shape, model)]
    if form.quantisation is not None:
        config.quantization_config = form.quantisation
    config.save_pretrained(folder)
    name = FileName("model.safetensors")
    return FolderCheckpoint(MadeFolder(LocalFolder(folder), {name: safetensors_file(f"{folder}/{name}", tensors)}))


def published_shapes(config: PreTrainedConfig) -> tuple[dict[str, tuple[int, ...]], Model]:
    """Return the shapes of a model's parameters by the names that the hub has, and facts of it."""
    model = build_model(config, torch.bfloat16)
    config.architectures = [type(model).__name__]
    state = revert_weight_conversion(model, model.state_dict())
    if config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    scale = getattr(model.get_input_embeddings(), "scalar_embed_scale", 1.0)
    return {name: tuple(value.shape) for name, value in state.items()}, Model(config.hidden_size, scale)
