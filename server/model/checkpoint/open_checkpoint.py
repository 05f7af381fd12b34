"""Opens a checkpoint of any kind."""

from __future__ import annotations

from pathlib import Path

from expert_store import Place, is_pack, open_pack
from expert_store.packed.manifest import MANIFEST_NAME
from server.model.checkpoint.checkpoint import Checkpoint
from server.model.checkpoint.config_checks import CONFIG
from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.checkpoint.gguf.gguf_checkpoint import GgufCheckpoint
from server.model.checkpoint.gguf.ollama_checkpoint import OllamaCheckpoint
from server.model.checkpoint.local_files import GGUF
from server.model.checkpoint.pack_checkpoint import PackCheckpoint
from server.model.checkpoint.remote.web_folder import WebFolder, WebPlace, folder_of
from server.model.checkpoint.remote.web_source import WebSource
from server.model.errors import ModelError


def open_checkpoint(place: Path | WebPlace, original: Path | WebPlace | None = None) -> Checkpoint:
    """Open a packed model, a folder of safetensors, a GGUF file, or a model of Ollama's store by its manifest.

    Args:
        place: a path, or a place on a web server.
        original: the model that a GGUF file was made from, whose config and tokenizer count instead of the file's.

    Raises:
        CheckpointError: the folder is packed, and a file of it is damaged.
        ModelError: there is an original, but no GGUF file.
    """
    if isinstance(place, WebFolder) or (isinstance(place, Path) and place.suffix != GGUF and not place.is_file()):
        if original is not None:
            raise ModelError("the model has a config of its own; leave --config-from out, which is for GGUF files")
        if isinstance(place, WebFolder) and not {CONFIG, MANIFEST_NAME} & set(place.names()):
            raise ModelError(f"{place.name} has no {CONFIG}; give the address of a checkpoint's folder or a GGUF file")
        return open_folder(place)
    from_original = None if original is None else open_checkpoint(original)
    if isinstance(place, WebSource):
        return GgufCheckpoint(folder_of(place), place.short_name, from_original)
    if place.suffix == GGUF:
        return GgufCheckpoint(place.parent, place.name, from_original)
    return OllamaCheckpoint(place, from_original)


def open_folder(place: Place) -> Checkpoint:
    """Open a packed model or a folder of safetensors, on a disk or elsewhere.

    Raises:
        CheckpointError: the folder is packed, and a file of it is damaged.
    """
    return PackCheckpoint(open_pack(place)) if is_pack(place) else FolderCheckpoint(place)
