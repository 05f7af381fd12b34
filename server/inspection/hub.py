"""What the hub tells of a model without its weights: the config, and the headers of the safetensors files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import get_safetensors_metadata, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, NotASafetensorsRepoError, SafetensorsParsingError
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from server.model.checkpoint import hub_errors
from server.model.errors import ModelError


def fetch_headers(model: str, revision: str | None, folder: Path) -> None:
    """Write ``config.json`` of a hub model into a folder, and its safetensors files, cut off after their headers.

    Raises:
        ModelError: there is no such model, it has no safetensors files, or the hub can't be reached.
    """
    was_quiet = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        with hub_errors(model, revision, "looking up"):
            config = hf_hub_download(model, "config.json", revision=revision)
            shards = get_safetensors_metadata(model, revision=revision).files_metadata
    except (NotASafetensorsRepoError, SafetensorsParsingError) as error:
        raise ModelError(f"{model} has no usable .safetensors files; pickled checkpoints are not opened") from error
    except EntryNotFoundError as error:
        raise ModelError(f"{model} has no config.json; give the id of a transformers checkpoint") from error
    except httpx.HTTPError as error:
        raise ModelError(
            f"the hub can't be reached to look up {model} ({error}); go online, or give a local folder"
        ) from error
    finally:
        if not was_quiet:
            enable_progress_bars()
    shutil.copy(config, folder / "config.json")
    for name, shard in shards.items():
        tensors = {
            tensor: {"dtype": info.dtype, "shape": info.shape, "data_offsets": info.data_offsets}
            for tensor, info in shard.tensors.items()
        }
        write_header(folder / Path(name).name, tensors)


def write_header(path: Path, tensors: dict[str, Any]) -> None:
    """A safetensors file that ends where its tensors should begin."""
    header = json.dumps(tensors).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
