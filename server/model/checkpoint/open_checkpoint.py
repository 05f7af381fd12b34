"""Opens a checkpoint of any kind."""

from __future__ import annotations

from pathlib import Path

from expert_store import is_pack, open_pack
from server.model.checkpoint.checkpoint import Checkpoint
from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.checkpoint.pack_checkpoint import PackCheckpoint


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a packed model, or a folder of safetensors.

    Raises:
        CheckpointError: the folder is packed, and a file of it is damaged.
    """
    return PackCheckpoint(open_pack(path)) if is_pack(path) else FolderCheckpoint(path)
