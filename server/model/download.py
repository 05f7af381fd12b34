"""A model's files from the Hugging Face hub to its cache on this machine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # of HTTPError
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of the HTTP client that the hub's library uses, whichever it is
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]  # documented, not exported
from huggingface_hub.utils.tqdm import disable_progress_bars

from server.memory.sizes import format_bytes
from server.progress import following

from .errors import ModelError, check_formats

# Weights as safetensors only, and what tokenizer and config need; never code and never pickles.
HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
BLOCK_BYTES = 512  # what st_blocks counts in


def download(model: str, revision: str | None) -> Path:
    """The folder of a hub model, whole; what is in the cache already is not downloaded again.

    Raises:
        ModelError: there is no such repository, it can't be reached or has no safetensors files, or the disk is full.
    """
    disable_progress_bars()
    with hub_errors(model, revision, "downloading"):
        listing = _list(model, revision)
        if listing is None:  # the cache may have it
            return Path(snapshot_download(model, revision=revision, allow_patterns=HUB_FILES))
        missing = _check(listing)
        before = listing.stored_bytes()
        with following(f"downloading {model}", missing, lambda: listing.stored_bytes() - before):
            return Path(snapshot_download(model, revision=revision, allow_patterns=HUB_FILES))


@dataclass(frozen=True)
class Listing:
    """What the hub says of a model's files."""

    model: str
    commit: str | None
    names: list[str]  # of all
    sizes: Mapping[str, int]  # of those to download, in bytes

    @property
    def missing_bytes(self) -> int:
        """That are still to be downloaded; half a file of an earlier attempt is gone on with."""
        missing = [
            size
            for name, size in self.sizes.items()
            if not isinstance(try_to_load_from_cache(self.model, name, revision=self.commit), str)
        ]
        return max(0, sum(missing) - sum(map(_disk_bytes, self._blobs.glob("*.incomplete"))))

    def stored_bytes(self) -> int:
        """Of the model in the cache, in all its revisions."""
        return sum(map(_disk_bytes, self._blobs.glob("*")))

    @property
    def _blobs(self) -> Path:
        return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=self.model, repo_type="model") / "blobs"


def _list(model: str, revision: str | None) -> Listing | None:
    """The files of a model; None if the hub does not tell."""
    try:
        info = HfApi().model_info(model, revision=revision, files_metadata=True)
    except (HTTPError, OSError):  # what is wrong is said by the attempt to download
        return None
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    wanted = filter_repo_objects(sizes, allow_patterns=HUB_FILES)
    return Listing(model, info.sha, list(sizes), {name: sizes[name] for name in wanted})


def check_room(model: str, revision: str | None) -> int:
    """Bytes that are still to be downloaded of a hub model, as far as the hub tells.

    Raises:
        ModelError: they are more than the disk has room for, or those of another format.
    """
    listing = _list(model, revision)
    return 0 if listing is None else _check(listing)


def _check(listing: Listing) -> int:
    check_formats(listing.model, listing.names)
    missing, cache = listing.missing_bytes, Path(constants.HF_HUB_CACHE)
    free = shutil.disk_usage(next(folder for folder in (cache, *cache.parents) if folder.is_dir())).free
    if missing > free:
        raise ModelError(
            f"{listing.model} takes {format_bytes(missing)} more on disk, and {cache} has {format_bytes(free)} free; "
            "free some, or set HF_HOME to a folder on a larger disk"
        )
    return missing


def _disk_bytes(path: Path) -> int:
    """Written so far; files may be filled in any order. 0 for one that has just been renamed."""
    try:
        return path.stat().st_blocks * BLOCK_BYTES
    except OSError:
        return 0


@contextmanager
def hub_errors(model: str, revision: str | None, action: str) -> Iterator[None]:
    """Turn what can go wrong with the hub into one line.

    Args:
        action: what was being done to the model, as "downloading".
    """
    try:
        yield
    except GatedRepoError as error:
        raise ModelError(
            f"{model} is gated: accept its licence at {constants.ENDPOINT}/{model}, then run `hf auth login` "
            "(or set HF_TOKEN)"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"the hub has no model {model}, or it is private; check the name, or run `hf auth login` (or set HF_TOKEN)"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{model} has no revision {revision}") from error
    except LocalEntryNotFoundError as error:
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub can't be reached"
        raise ModelError(
            f"{model} is neither a folder here nor whole in the hub cache {constants.HF_HUB_CACHE}, and {reason}; run "
            f"`hf download {model}` where there is a network and set HF_HOME to that cache, or give a local folder"
        ) from error
    except HFValidationError as error:
        raise ModelError(f"there is no folder {model}, and no hub model can have that name") from error
    except (HTTPError, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{action} {model} failed: {reason}; the same command goes on from here") from error
