"""Opens a checkpoint of any kind."""

from __future__ import annotations

from pathlib import Path

from expert_store import is_pack, open_pack
from server.model.checkpoint.checkpoint import Checkpoint
from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.checkpoint.gguf.gguf_checkpoint import GgufCheckpoint
from server.model.checkpoint.local_files import GGUF
from server.model.checkpoint.pack_checkpoint import PackCheckpoint


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a packed model, a folder of safetensors, or a GGUF file.

    Raises:
        CheckpointError: the folder is packed, and a file of it is damaged.
    """
    if path.suffix == GGUF:
        return GgufCheckpoint(path)
    return PackCheckpoint(open_pack(path)) if is_pack(path) else FolderCheckpoint(path)
