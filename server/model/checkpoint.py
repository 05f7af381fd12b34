"""A model's name to a folder on disk."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from expert_store import is_pack, read_manifest

from .errors import ModelError

BUNDLED = Path(__file__).resolve().parent.parent / "demo" / "model"
BUNDLED_NAME = "greenroom-demo"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Weights as safetensors only, and what tokenizer and config need; never code and never pickles.
HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]


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
    with hub_errors(model, revision, "downloading"):
        return Path(snapshot_download(model, revision=revision, allow_patterns=HUB_FILES)), model


def find_local(model: str | None) -> tuple[Path, str] | None:
    """The folder of a model that is on this machine, and its name; None for a hub id.

    Raises:
        ModelError: there is no such folder, and no repository can have that name.
        CheckpointError: it is packed, and its manifest is damaged.
    """
    if model is None:
        return BUNDLED, BUNDLED_NAME
    folder = Path(model)
    if folder.resolve() == BUNDLED:
        return BUNDLED, BUNDLED_NAME
    if folder.is_dir():
        return folder, read_manifest(folder).model if is_pack(folder) else folder.resolve().name
    if folder.exists():
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


@contextmanager
def hub_errors(model: str, revision: str | None, action: str) -> Iterator[None]:
    """Turn what can go wrong with the hub into one line.

    Args:
        action: what was being done to the model, as "downloading".
    """
    try:
        yield
    except GatedRepoError as error:
        raise ModelError(f"{model} is gated: ask for access on its hub page, then run `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"the hub has no model {model}, or it is private and you are not logged in") from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{model} has no revision {revision}") from error
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"{model} is neither a folder here nor in the hub cache, and the hub can't be reached; "
            "go online, or give a local folder"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{action} {model} failed: {reason}") from error
