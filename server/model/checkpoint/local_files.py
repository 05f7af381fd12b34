"""Lists the files in a model's folder. Torch-free, so that commands refuse a wrong name before they import torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from server.model.errors import ModelError, check_formats

GGUF = ".gguf"  # suffix of files with a complete model, or a part of one
SPLIT_FILE = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")  # 1-based
PROJECTOR = "mmproj"  # begins the names of files with the image part of a model
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def local_files(model: str) -> list[str] | None:
    """Return the names of the files in a model's folder, or the name of a GGUF file; None for a hub id.

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
    if is_other and folder.suffix == GGUF:
        return [folder.name]
    if is_other:
        check_formats(model, [folder.name])
        raise ModelError(
            f"{model} is a file; give a .gguf file, or the folder that holds config.json and the .safetensors files"
        )
    if not HUB_ID.fullmatch(model):
        raise ModelError(f"there is no folder {model}; give a local folder, or a hub model as OWNER/NAME")
    return None


def gguf_models(names: Iterable[str]) -> list[str]:
    """Return the name of the first file of each model in the GGUF format, among the names of files."""
    found = set()
    for name in names:
        if name.endswith(GGUF) and not name.startswith(PROJECTOR):
            match = SPLIT_FILE.fullmatch(name)
            found.add(f"{match[1]}-00001-of-{match[3]}{GGUF}" if match else name)
    return sorted(found)


def find_gguf(model: str, names: Sequence[str]) -> Path | None:
    """Return the first file of the only model in the GGUF format that a name stands for; None if there is none.

    Args:
        model: a GGUF file, or a folder.
        names: what ``local_files`` returned.

    Raises:
        ModelError: the folder holds several models.
    """
    models, path = gguf_models(names), Path(model)
    if not models:
        return None
    if not path.is_dir():
        return path
    if len(models) > 1:
        raise ModelError(f"{model} holds {len(models)} models in the GGUF format; give one, such as {path / models[0]}")
    if any(name.endswith(".safetensors") for name in names):
        raise ModelError(
            f"{model} holds a model in safetensors and {models[0]}; give {path / models[0]} to serve that, or move it "
            "to another folder to serve the safetensors"
        )
    return path / models[0]


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
