"""Finds the folder of a model by its name."""

from __future__ import annotations

import re
from pathlib import Path

from expert_store import is_pack, read_manifest
from server.model.checkpoint.download import download
from server.model.errors import ModelError, check_formats

BUNDLED = Path(__file__).resolve().parents[2] / "demo" / "model"
BUNDLED_NAME = "greenroom-demo"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def find_checkpoint(model: str | None, revision: str | None) -> tuple[Path, str]:
    """Return a model's folder and name: the bundled model, a local or packed folder, or a download from the hub.

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
    """Return the folder and name of a model on this machine; None for a hub id.

    Raises:
        ModelError: there is no such folder and the name is not a hub id, the folder can't be read, or it is not a
            model's checkpoint.
        CheckpointError: the folder is packed, and its manifest is damaged.
    """
    if model is None:
        return BUNDLED, BUNDLED_NAME
    folder = Path(model)
    check_printable(model)
    try:
        if folder.resolve() == BUNDLED:
            return BUNDLED, BUNDLED_NAME
        if folder.is_dir():
            names = [path.name for path in folder.iterdir()]
            if is_pack(folder):
                return folder, check_printable(read_manifest(folder).model)
            check_formats(model, names)
            return folder, check_printable(folder.resolve().name)
        is_other = folder.exists()
    except OSError as error:
        raise ModelError(f"{model} can't be read: {error.strerror}; check its permissions (ls -ld)") from error
    if is_other:
        check_formats(model, [folder.name])
        raise ModelError(f"{model} is a file; give the folder that holds config.json and the .safetensors files")
    if not HUB_ID.fullmatch(model):
        raise ModelError(f"there is no folder {model}; give a local folder, or a hub model as OWNER/NAME")
    return None


def check_printable(name: str) -> str:
    """Return the name of a model or its folder, which logs and replies show.

    Raises:
        ModelError: a character of it can't be printed, such as the end of a line, or half a surrogate pair.
    """
    if not name.isprintable():
        raise ModelError(f"the name {name!r} has characters that can't be printed; rename the folder or pack it again")
    return name


def config_folder(folder: Path) -> Path:
    """Return the folder of ``config.json`` and the tokenizer: the model's folder, or a subfolder of a pack.

    Raises:
        CheckpointError: the folder is packed, and its manifest is damaged.
    """
    return folder / read_manifest(folder).data if is_pack(folder) else folder
