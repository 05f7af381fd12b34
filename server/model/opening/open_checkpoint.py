"""Opens a checkpoint of any kind."""

from __future__ import annotations

from pathlib import Path

from expert_store import FileName, LocalFolder, Place, is_pack, open_pack
from expert_store.packed.manifest import MANIFEST_NAME
from server.model.checkpoint.checkpoint import Checkpoint
from server.model.checkpoint.config_checks import CONFIG
from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.checkpoint.local_files import GGUF
from server.model.checkpoint.pack_checkpoint import PackCheckpoint
from server.model.checkpoint.remote.place import RemotePlace
from server.model.errors import ModelError
from server.model.opening.gguf_checkpoint import GgufCheckpoint
from server.model.opening.ollama_checkpoint import OllamaCheckpoint


def open_checkpoint(place: Path | RemotePlace, original: Path | RemotePlace | None = None) -> Checkpoint:
    """Open a packed model, a folder of safetensors, a GGUF file, or a model of Ollama's store by its manifest.

    Args:
        place: a path, or a place elsewhere.
        original: the model that a GGUF file was made from, whose config and tokenizer count instead of the file's.

    Raises:
        CheckpointError: the folder is packed, and a file of it is damaged.
        ModelError: there is an original, but no GGUF file.
    """
    if isinstance(place, Path):
        is_folder = place.suffix != GGUF and not place.is_file()
        found = (
            RemotePlace(LocalFolder(place))
            if is_folder
            else RemotePlace(LocalFolder(place.parent), FileName(place.name))
        )
    else:
        found = place
    if found.file is None:
        if original is not None:
            raise ModelError("the model has a config of its own; leave --config-from out, which is for GGUF files")
        if isinstance(place, RemotePlace) and not {CONFIG, MANIFEST_NAME} & set(found.folder.names()):
            name = found.folder.name
            raise ModelError(f"{name} has no {CONFIG}; give the address of a checkpoint's folder or a GGUF file")
        return open_folder(found.folder)
    from_original = None if original is None else open_checkpoint(original)
    if isinstance(place, Path) and place.suffix != GGUF:
        return OllamaCheckpoint(place, from_original)
    return GgufCheckpoint(found.folder, found.file, from_original)


def open_folder(place: Place) -> Checkpoint:
    """Open a packed model or a folder of safetensors, on a disk or elsewhere.

    Raises:
        CheckpointError: the folder is packed, and a file of it is damaged.
    """
    return PackCheckpoint(open_pack(place)) if is_pack(place) else FolderCheckpoint(place)
