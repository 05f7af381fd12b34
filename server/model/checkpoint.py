"""A model's name to a folder on disk."""

from __future__ import annotations

import re
from pathlib import Path

from expert_store import is_pack, read_manifest

from .download import download
from .errors import ModelError, check_formats

BUNDLED = Path(__file__).resolve().parent.parent / "demo" / "model"
BUNDLED_NAME = "greenroom-demo"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def find_checkpoint(model: str | None, revision: str | None) -> tuple[Path, str]:
    """The folder of a model and its name: the bundled one, a local or packed folder, or a download from the hub.

    Raises:
        ModelError: there is no such folder or repository, or it can't be reached.
        CheckpointError: it is packed, and its manifest is damaged.
    """
    found = find_local(model)
    if found is not None:
        return found
    assert model is not None
    return download(model, revision), model


def find_local(model: str | None) -> tuple[Path, str] | None:
    """The folder of a model that is on this machine, and its name; None for a hub id.

    Raises:
        ModelError: there is no such folder, and no repository can have that name; or it can't be read, or is that of
            something else than a model's checkpoint.
        CheckpointError: it is packed, and its manifest is damaged.
    """
    if model is None:
        return BUNDLED, BUNDLED_NAME
    folder = Path(model)
    try:
        if folder.resolve() == BUNDLED:
            return BUNDLED, BUNDLED_NAME
        if folder.is_dir():
            names = [path.name for path in folder.iterdir()]
            if is_pack(folder):
                return folder, read_manifest(folder).model
            check_formats(model, names)
            return folder, folder.resolve().name
        is_other = folder.exists()
    except OSError as error:
        raise ModelError(f"{model} can't be read: {error.strerror}; see who may read it (ls -ld)") from error
    if is_other:
        check_formats(model, [folder.name])
        raise ModelError(f"{model} is a file; give the folder that holds config.json and the .safetensors files")
    if not HUB_ID.fullmatch(model):
        raise ModelError(f"there is no folder {model}, and a hub model is named OWNER/NAME")
    return None


def config_folder(folder: Path) -> Path:
    """Where ``config.json`` and the tokenizer's files of a model are: in its folder, or where a pack keeps them.

    Raises:
        CheckpointError: the folder is packed, and its manifest is damaged.
    """
    return folder / read_manifest(folder).data if is_pack(folder) else folder
