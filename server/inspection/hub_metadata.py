"""Reads a model's metadata from the hub: the config, and the headers of the safetensors files, but no weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import file_exists, get_safetensors_metadata, hf_hub_download, snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # of HTTPError
    HfHubHTTPError,
    HTTPError,  # the error of the HTTP client that the hub's library uses
    NotASafetensorsRepoError,
    OfflineModeIsEnabled,
    SafetensorsParsingError,
)
from huggingface_hub.utils.tqdm import disable_progress_bars

from server.model.checkpoint.download import check_upload, hub_errors, not_inspected
from server.model.checkpoint.local_files import split_tag
from server.model.errors import ModelError


def find_hub_model(model: str, revision: str | None, scratch: Path) -> Path:
    """Return a folder with a hub model's metadata, or its folder in the cache if the hub can't be reached.

    Args:
        scratch: an empty folder for the headers.

    Raises:
        ModelError: there is no such model, it has no safetensors files, it is a GGUF file, or the hub can't be reached
            and the model is not in the cache.
    """
    if split_tag(model)[1] is not None:
        raise not_inspected(model)
    if not _is_reachable(model, revision):
        with hub_errors(model, revision, "looking up"):
            return Path(snapshot_download(model, revision=revision, local_files_only=True))
    _download_headers(model, revision, scratch)
    return scratch


def _is_reachable(model: str, revision: str | None) -> bool:
    """Return True if the hub can be reached. Unlike a download, this does not retry."""
    try:
        file_exists(model, "config.json", revision=revision)
    except HfHubHTTPError:
        return True  # the download will report the error
    except (HTTPError, OfflineModeIsEnabled):
        return False
    return True


def _download_headers(model: str, revision: str | None, folder: Path) -> None:
    """Write a model's ``config.json`` and safetensors files to a folder; the files end after their headers."""
    disable_progress_bars()
    try:
        with hub_errors(model, revision, "looking up"):
            check_upload(model, revision)
            config = hf_hub_download(model, "config.json", revision=revision)
            shards = get_safetensors_metadata(model, revision=revision).files_metadata
    except (NotASafetensorsRepoError, SafetensorsParsingError) as error:
        raise ModelError(f"{model} has no usable .safetensors files; pickled checkpoints are not supported") from error
    except HTTPError as error:
        raise ModelError(f"looking up {model} failed: {error}; try again, or give a local folder") from error
    shutil.copy(config, folder / "config.json")
    for name, shard in shards.items():
        tensors = {
            tensor: {"dtype": info.dtype, "shape": info.shape, "data_offsets": info.data_offsets}
            for tensor, info in shard.tensors.items()
        }
        write_header(folder / Path(name).name, tensors)


def write_header(path: Path, tensors: dict[str, Any]) -> None:
    """Write a safetensors file that ends after its header."""
    header = json.dumps(tensors).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
