"""Lists the files in a model's folder. Torch-free, so that commands refuse a wrong name before they import torch."""

from __future__ import annotations

import re
from pathlib import Path

from server.model.errors import ModelError, check_formats

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def local_files(model: str) -> list[str] | None:
    """Return the names of the files in a model's folder; None for a hub id.

    Raises:
        ModelError: there is no such folder and the name is not a hub id, or the folder can't be read.
    """
    folder = Path(model)
    check_printable(model)
    try:
        if folder.is_dir():
            return [path.name for path in folder.iterdir()]
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


def check_model(model: str | None) -> None:
    """Raise ModelError if a model of the command line is neither a folder nor a hub id; None is the bundled one."""
    if model is not None:
        local_files(model)
