"""Lists the files in a model's folder. Torch-free, so that commands refuse a wrong name before they import torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from expert_store import CheckpointError, FileName
from server.model.checkpoint.ollama_store import find_manifest, is_ollama
from server.model.checkpoint.remote.addresses import is_address
from server.model.errors import ModelError, check_formats

GGUF = ".gguf"  # suffix of files with a complete model, or a part of one
SPLIT_FILE = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf")  # 1-based
OTHER_PARTS = ("mtp-", "imatrix")  # begin the names of files that are no models
PROJECTOR = "mmproj"  # is in the names of files with the image part of a model
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]+)?")  # with the tag of a GGUF file
WEIGHTS_LABEL = re.compile(r"(?:^|[-_.])((?:UD-)?(?:I?Q\d|TQ\d|BF16|F16|F32|MXFP4|NVFP4)\w*)$", re.IGNORECASE)


def local_files(model: str) -> list[FileName] | None:
    """Return the names of the files in a model's folder, or the name of a GGUF file; None for a hub id.

    Raises:
        ModelError: there is no such folder and the name is not a hub id, or the folder can't be read.
        CheckpointError: the file has a name that no file of a model may have.
    """
    check_printable(model)
    if is_ollama(model):
        return [FileName(find_manifest(model).name)]
    folder = Path(model)
    try:
        if folder.is_dir():
            return FileName.valid(path.name for path in folder.iterdir())
        is_other = folder.exists()
    except OSError as error:
        raise ModelError(f"{model} can't be read: {error.strerror}; check its permissions (ls -ld)") from error
    if is_other and folder.suffix == GGUF:
        return [FileName(folder.name)]
    if is_other:
        check_formats(model, [folder.name])
        raise ModelError(
            f"{model} is a file; give a .gguf file, or the folder that holds config.json and the .safetensors files"
        )
    if not HUB_ID.fullmatch(model):
        kind = "file" if folder.suffix == GGUF else "folder"
        raise ModelError(f"there is no {kind} {model}; give a local folder, a GGUF file, or a hub model as OWNER/NAME")
    return None


def is_gguf(model: str) -> bool:
    """Return True if a model of the command line is in the GGUF format, by its name alone."""
    if is_address(model):
        return model.rstrip("/").endswith(GGUF)
    return is_ollama(model) or model.endswith(GGUF) or (split_tag(model)[1] is not None and not Path(model).exists())


def gguf_models(names: Iterable[FileName]) -> list[FileName]:
    """Return the name of the first file of each model in the GGUF format, among the names of files."""
    found = set()
    for name in names:
        if name.endswith(GGUF) and not Path(name).name.startswith(OTHER_PARTS) and not is_projector(name):
            match = SPLIT_FILE.fullmatch(name)
            found.add(FileName(f"{match[1]}-00001-of-{match[3]}{GGUF}") if match else name)
    return sorted(found)


def is_projector(name: str) -> bool:
    """Return True if a file has the image part of a model, by its name."""
    return PROJECTOR in Path(name).name.lower()


def names_of_splits(name: FileName) -> list[FileName]:
    """Return the names of all files of the model that a GGUF file belongs to, in order.

    Raises:
        CheckpointError: the name has a number that is not among those of the files.
    """
    split = SPLIT_FILE.fullmatch(name)
    if split is None:
        return [name]
    if not 1 <= int(split[2]) <= int(split[3]):
        raise CheckpointError(
            f"{name} is file {int(split[2])} of {int(split[3])} by its name; give it the name that it was published "
            "under"
        )
    return [FileName(f"{split[1]}-{number:05d}-of-{split[3]}{GGUF}") for number in range(1, int(split[3]) + 1)]


def split_tag(model: str) -> tuple[str, str | None]:
    """Return the repository that a hub model's name names, and the tag of one of its GGUF files."""
    repository, _, tag = model.partition(":")
    return repository, tag or None


def gguf_label(name: str) -> str:
    """Return what the name of a file says of the type of its weights, such as Q4_K_M; or else the name."""
    split = SPLIT_FILE.fullmatch(name)
    stem = Path(split[1] if split else name.removesuffix(GGUF)).name
    match = WEIGHTS_LABEL.search(stem)
    return match[1] if match else stem


def choose_gguf(repository: str, tag: str | None, names: Iterable[FileName]) -> FileName:
    """Return the first file of the model that a tag names, among the names of a repository's files.

    Args:
        tag: the label of a file's weights, in any case; None if the repository has one model.

    Raises:
        ModelError: no file has the tag, or several have; the message lists what there is.
    """
    models = gguf_models(names)
    chosen = [name for name in models if tag is None or gguf_label(name).lower() == tag.lower()]
    if len(chosen) == 1:
        return chosen[0]
    labels = ", ".join(dict.fromkeys(map(gguf_label, models)))
    if not models:
        raise ModelError(f"{repository} has no GGUF files; give {repository} without :{tag}")
    if tag is None:
        example = gguf_label(models[0])
        raise ModelError(f"{repository} has GGUF files of {labels}; give one, such as {repository}:{example}")
    if not chosen:
        raise ModelError(f"{repository} has no GGUF file of {tag}, but of {labels}; give one of these after the colon")
    raise ModelError(
        f"{repository} has {len(chosen)} models of {tag}: {', '.join(chosen)}; download one, and give its file"
    )


def files_of_gguf(first: FileName, names: Iterable[FileName]) -> list[FileName]:
    """Return all files of the model in the GGUF format whose first file has a name."""
    split = SPLIT_FILE.fullmatch(first)
    if split is None:
        return [first]
    return [name for name in names if (match := SPLIT_FILE.fullmatch(name)) and match.group(1, 3) == split.group(1, 3)]


def find_gguf(model: str, names: Sequence[FileName]) -> Path | None:
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
    """Raise ModelError if a model of the command line is no folder, hub id or address; None is the bundled one."""
    if model is not None and not is_address(check_printable(model)):
        local_files(model)
