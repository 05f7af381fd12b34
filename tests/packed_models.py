"""Packs of real checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch

from expert_store import write_pack
from server.model.checkpoint.locate import BUNDLED, BUNDLED_NAME
from server.model.checkpoint.weight_formats import StoredFormat
from server.model.model_building import build_model
from server.model.opening.open_checkpoint import open_checkpoint
from server.model.opening.packing import pack_source


def pack_model(folder: Path, out: Path, weights: StoredFormat = "bfloat16") -> Path:
    """Pack a checkpoint as `greenroom pack` does."""
    checkpoint = open_checkpoint(folder)
    model = build_model(checkpoint.read_config(), torch.bfloat16)
    name = BUNDLED_NAME if folder == BUNDLED else folder.name
    write_pack(pack_source(model, checkpoint, name, weights), out, 2, lambda _: None)
    return out
