"""Reads a model's metadata from the hub: the config, and the headers of the files with weights, but no weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import file_exists, get_safetensors_metadata, hf_hub_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # of HTTPError
    HfHubHTTPError,
    HTTPError,  # the error of the HTTP client that the hub's library uses
    NotASafetensorsRepoError,
    OfflineModeIsEnabled,
    SafetensorsParsingError,
)
from huggingface_hub.utils.tqdm import disable_progress_bars

from expert_store import FileName, LocalFolder, MemorySource, Source, SourceFolder, read_json_object
from server.model.checkpoint.checkpoint import Checkpoint
from server.model.checkpoint.download import cached_model, download_small_file
from server.model.checkpoint.hub_failures import hub_errors
from server.model.checkpoint.hub_listing import Listing, list_upload
from server.model.checkpoint.local_files import split_tag
from server.model.checkpoint.remote.place import RemotePlace, hub_place
from server.model.errors import ModelError
from server.model.opening.open_checkpoint import open_checkpoint, open_folder
from server.model.quantised.scheme import BITSANDBYTES
from server.redaction import redact


@dataclass(frozen=True)
class HubHeaders:
    """The config of a hub model, and its safetensors files as far as their headers; see ``SourceFolder``."""

    config: LocalFolder  # which has the model's name
    headers: Mapping[FileName, MemorySource]

    @property
    def name(self) -> str:
        """The path of the config's folder."""
        return self.config.name

    @property
    def short_name(self) -> str:
        """The model's name, without its owner."""
        return self.config.short_name

    def names(self) -> Collection[FileName]:
        """Return the names of config and headers."""
        return [*self.config.names(), *self.headers]

    def source(self, name: FileName, *, is_own: bool = False) -> Source:
        """Return a header, or else a file of the config's folder."""
        return self.headers.get(name) or self.config.source(name, is_own=is_own)

    def folder(self, name: FileName) -> SourceFolder:
        """Return a folder beside the config."""
        return self.config.folder(name)

    def local_copy(self, _: Collection[str], through: SourceFolder | None = None) -> Path:
        """Return the config's folder."""
        del through
        return self.config.path


def open_hub_model(model: str, revision: str | None, scratch: Path, original: Path | RemotePlace | None) -> Checkpoint:
    """Open a hub model by its metadata, or as it is in the cache if the hub can't be reached.

    Args:
        scratch: an empty folder for the config, which has the model's name.
        original: see ``open_checkpoint``.

    Raises:
        ModelError: there is no such model, it has no safetensors or GGUF files, or the hub can't be reached and the
            model is not in the cache.
    """
    repository, tag = split_tag(model)
    with hub_errors(model, revision, "looking up"):
        is_there = _is_reachable(repository, revision)
        listing = list_upload(model, revision) if is_there else None
        if not is_there or (listing is None and tag is not None):
            return open_checkpoint(cached_model(model, revision), original)
    if listing is not None and (listing.gguf is not None or _describes_shapes(listing)):
        return open_checkpoint(hub_place(listing), original)
    return open_folder(_download_headers(model, revision, scratch))


def _describes_shapes(listing: Listing) -> bool:
    """Return whether tensors hold the shapes of others, so that headers are not enough."""
    if "config.json" not in listing.names:
        return False
    given = read_json_object(download_small_file(listing, FileName("config.json"))).get("quantization_config")
    return isinstance(given, dict) and given.get("quant_method") == BITSANDBYTES


def _is_reachable(model: str, revision: str | None) -> bool:
    """Return True if the hub can be reached. Unlike a download, this does not retry."""
    try:
        file_exists(model, "config.json", revision=revision)
    except HfHubHTTPError:
        return True  # the download will report the error
    except (HTTPError, OfflineModeIsEnabled):
        return False
    return True


def _download_headers(model: str, revision: str | None, scratch: Path) -> HubHeaders:
    disable_progress_bars()
    try:
        with hub_errors(model, revision, "looking up"):
            config = hf_hub_download(model, "config.json", revision=revision)
            shards = get_safetensors_metadata(model, revision=revision).files_metadata
    except (NotASafetensorsRepoError, SafetensorsParsingError) as error:
        raise ModelError(f"{model} has no usable .safetensors files; pickled checkpoints are not supported") from error
    except HTTPError as error:
        raise ModelError(
            f"looking up {model} failed: {redact(str(error))}; try again, or give a local folder"
        ) from error
    shutil.copy(config, scratch / "config.json")
    headers = {}
    for path, shard in shards.items():
        tensors = {
            tensor: {"dtype": info.dtype, "shape": info.shape, "data_offsets": info.data_offsets}
            for tensor, info in shard.tensors.items()
        }
        name = FileName(path).last
        headers[name] = MemorySource(str(scratch / name), header_bytes(tensors))
    return HubHeaders(LocalFolder(scratch), headers)


def header_bytes(tensors: Mapping[str, Any]) -> bytes:
    """Return the beginning of a safetensors file, up to the tensors' data."""
    header = json.dumps(tensors).encode()
    return len(header).to_bytes(8, "little") + header
