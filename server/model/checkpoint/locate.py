"""Finds the folder of a model by its name."""

from __future__ import annotations

from pathlib import Path

from expert_store import is_pack, read_manifest
from server.model.checkpoint.download import download, download_small_files
from server.model.checkpoint.local_files import SPLIT_FILE, check_printable, find_gguf, local_files
from server.model.checkpoint.ollama_store import find_manifest, is_ollama, manifest_name
from server.model.errors import check_formats

BUNDLED = Path(__file__).resolve().parents[2] / "demo" / "model"
BUNDLED_NAME = "greenroom-demo"


def find_checkpoint(model: str | None, revision: str | None) -> tuple[Path, str]:
    """Return a model's place and name: the bundled model, a local or packed folder, a GGUF file, or a download.

    Raises:
        ModelError: there is no such folder or repository, or the hub can't be reached.
        CheckpointError: the folder is packed, and its manifest is damaged.
    """
    found = find_local(model)
    if found is not None:
        return found
    assert model is not None
    return download(model, revision), model


def find_local(model: str | None) -> tuple[Path, str] | None:
    """Return the place and the name of a model on this machine; None for a hub id.

    The place is a folder, a GGUF file, or a manifest of Ollama's store.

    Raises:
        ModelError: there is no such folder and the name is not a hub id, the folder can't be read, or it is not a
            model's checkpoint.
        CheckpointError: the folder is packed, and its manifest is damaged.
    """
    names = [] if model is None else local_files(model)
    if names is None:
        return None
    if model is None or Path(model).resolve() == BUNDLED:
        return BUNDLED, BUNDLED_NAME
    if is_ollama(model):
        manifest = find_manifest(model)
        return manifest, manifest_name(manifest)
    folder = Path(model)
    if is_pack(folder):
        return folder, check_printable(read_manifest(folder).model)
    file = find_gguf(model, names)
    if file is not None:
        split = SPLIT_FILE.fullmatch(file.name)
        return file, check_printable(split[1] if split else file.stem)
    check_formats(model, names)
    return folder, check_printable(folder.resolve().name)


def find_original(model: str | None) -> Path | None:
    """Return the place of the model that ``--config-from`` names; None if it names none.

    Of a hub model all files but the weights are downloaded.

    Raises:
        ModelError: there is no such folder or repository, or the hub can't be reached.
    """
    if model is None:
        return None
    found = find_local(model)
    return download_small_files(model) if found is None else found[0]


def config_folder(folder: Path) -> Path:
    """Return the folder of ``config.json`` and the tokenizer: the model's folder, or a subfolder of a pack.

    Raises:
        CheckpointError: the folder is packed, and its manifest is damaged.
    """
    return folder / read_manifest(folder).data if is_pack(folder) else folder
