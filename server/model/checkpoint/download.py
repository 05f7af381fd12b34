"""Downloads a model's files from the Hugging Face hub to the local cache."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError  # type: ignore[attr-defined]  # for HTTPError
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]  # documented, not exported
from huggingface_hub.utils.tqdm import disable_progress_bars

from expert_store.file_name import FileName
from server.byte_sizes import format_bytes
from server.model.checkpoint.hub_failures import hub_errors
from server.model.checkpoint.hub_listing import (
    HUB_FILES,
    NOT_WEIGHTS,
    SMALL_FILES,
    Listing,
    check_format,
    is_refusal,
    list_files,
    listing_of,
    model_info,
    remember,
    remembered,
    repository_folder,
)
from server.model.checkpoint.local_files import GGUF, choose_gguf, gguf_label, split_tag
from server.model.errors import ModelError
from server.progress import polled_progress

log = logging.getLogger(__name__)

NUM_DOWNLOADS = 8  # at the same time


def download(model: str, revision: str | None) -> Path:
    """Download the missing files of a hub model, and return its folder in the cache.

    Args:
        model: ``OWNER/NAME``, or ``OWNER/NAME:TAG`` for a GGUF file, which is returned then.

    Raises:
        ModelError: there is no such repository, it can't be reached or has no safetensors or GGUF files, the tag names
            none or several of these, or the disk is full.
    """
    disable_progress_bars()
    with hub_errors(model, revision, "downloading"):
        try:
            listing = list_files(model, revision)
        except (HTTPError, OSError) as error:  # the cache may still have all files
            return _from_cache(lambda: cached_model(model, revision), error)
        missing = _check(listing)
        before = listing.stored_bytes()
        with polled_progress(f"downloading {model}", missing, lambda: listing.stored_bytes() - before):
            folder = _fetch(listing, listing.sizes)
        with suppress(OSError):  # the model is complete: only another start would not notice what is removed
            remember(replace(listing, revision=listing.commit))
        return folder if listing.gguf is None else folder / listing.gguf


def download_config(model: str) -> Path:
    """Download the config and the tokenizer of a hub model, and return their folder in the cache.

    Raises:
        ModelError: there is no such repository, or it can't be reached.
    """
    with hub_errors(model, None, "downloading"):
        try:
            info = model_info(model, None)
        except (HTTPError, OSError) as error:
            return _from_cache(lambda: _snapshot(model, None, SMALL_FILES), error)
        return download_small_files(listing_of(info, model, None))


def download_small_files(listing: Listing, folder: str = "") -> Path:
    """Download the config and the tokenizer of a hub model, and return their folder in the cache.

    Args:
        folder: of the repository; its root by default.

    Raises:
        ModelError: the hub does not send one.
    """
    disable_progress_bars()
    with hub_errors(listing.model, listing.commit, "downloading"):
        wanted = [f"{folder}/{pattern}" if folder else pattern for pattern in SMALL_FILES]
        others = ["*.index.json", f"{folder}/*/*" if folder else "*/*"]
        names = filter_repo_objects(listing.names, allow_patterns=wanted, ignore_patterns=others)
        return _fetch(listing, names) / folder


def download_small_file(listing: Listing, path: FileName) -> Path:
    """Download one file without weights of a hub model, and return where it is in the cache.

    Raises:
        ModelError: the hub does not send it.
    """
    disable_progress_bars()
    with hub_errors(listing.model, listing.commit, "downloading"):
        return Path(hf_hub_download(listing.model, path, revision=listing.commit))


def cached_place(listing: Listing) -> Path:
    """Return the place of a model whose weights are in the cache; missing small files are downloaded.

    Raises:
        ModelError: the hub does not send one.
    """
    if listing.gguf is None:
        return download_small_files(listing)
    found = listing.cached(listing.gguf)
    assert found is not None
    return found


def _fetch(listing: Listing, names: Iterable[FileName]) -> Path:
    """Download those files that the cache does not have, and return the folder of all.

    The hub's own ``snapshot_download`` is no choice: it asks for another list of the files, which nobody checks.
    """
    with ThreadPoolExecutor(NUM_DOWNLOADS, thread_name_prefix="download") as pool:
        try:
            for _ in pool.map(lambda name: hf_hub_download(listing.model, name, revision=listing.commit), names):
                pass
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    keep_reference(listing)
    return repository_folder(listing.model) / "snapshots" / listing.commit


def keep_reference(listing: Listing) -> None:
    """Note in the cache which commit the revision that was asked for is, for starts without a network.

    A cache that can't be written is no failure: it may be complete.
    """
    revision = listing.revision or constants.DEFAULT_REVISION
    if revision == listing.commit:
        return
    reference = repository_folder(listing.model) / "refs" / FileName(revision)
    if reference.is_file() and reference.read_text("utf-8") == listing.commit:
        return
    try:
        reference.parent.mkdir(parents=True, exist_ok=True)
        new = reference.with_name(f"{reference.name}.{os.getpid()}")
        new.write_text(listing.commit, "utf-8")
        new.replace(reference)
    except OSError as error:
        log.warning("a start without network will not find revision %s of %s: %s", revision, listing.model, error)


def _from_cache(find: Callable[[], Path], error: Exception) -> Path:
    """Return what the cache has of a model whose files could not be listed.

    Raises:
        LocalEntryNotFoundError: it has not all.
        Exception: the error, if the hub refused.
    """
    try:
        return find()
    except LocalEntryNotFoundError:
        if is_refusal(error):
            raise error from None
        raise


def _snapshot(repository: str, revision: str | None, files: Sequence[str]) -> Path:
    """Return the folder of some files in the cache.

    Raises:
        LocalEntryNotFoundError: the cache has no such folder, or not all of them.
    """
    found = snapshot_download(
        repository, revision=revision, allow_patterns=list(files), ignore_patterns=NOT_WEIGHTS, local_files_only=True
    )
    return Path(found)


def _cached(repository: str, revision: str | None, tag: str) -> Path:
    """Return a GGUF file that is in the cache; its reader finds the others that it is split into.

    Raises:
        LocalEntryNotFoundError: the cache has no such file.
    """
    commit = _cached_commit(repository, revision)
    folder = repository_folder(repository) / "snapshots" / commit
    names = FileName.valid(str(path.relative_to(folder)) for path in folder.rglob(f"*{GGUF}")) if commit else []
    if not any(gguf_label(name).lower() == tag.lower() for name in names):
        raise LocalEntryNotFoundError(f"{repository} has no GGUF file of {tag} in the cache")
    return folder / choose_gguf(repository, tag, names)


def _cached_commit(repository: str, revision: str | None) -> str:
    """Return the commit that a revision is in the cache; the revision itself, or nothing, if that is unknown."""
    reference = repository_folder(repository) / "refs" / (revision or constants.DEFAULT_REVISION)
    return reference.read_text("utf-8").strip() if reference.is_file() else revision or ""


def cached_model(model: str, revision: str | None) -> Path:
    """Return the place of a hub model in the cache.

    Raises:
        LocalEntryNotFoundError: it is not there, or not all of what was downloaded is.
    """
    repository, tag = split_tag(model)
    listing = remembered(model, _cached_commit(repository, revision))
    missing = [] if listing is None else [name for name in listing.sizes if listing.cached(name) is None]
    if missing:
        raise LocalEntryNotFoundError(f"the cache lacks {missing[0]} of {model}")
    if tag is not None:
        return _cached(repository, revision, tag)
    return _snapshot(repository, revision, HUB_FILES)


def _check(listing: Listing) -> int:
    check_format(listing)
    missing, cache = listing.missing_bytes, Path(constants.HF_HUB_CACHE)
    free = free_bytes(cache)
    if missing > free:
        raise ModelError(
            f"{listing.model} needs {format_bytes(missing)} more on disk, but {cache} has only {format_bytes(free)} "
            "free; free some space, or set HF_HOME to a folder on a larger disk"
        )
    return missing


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk of a folder, which need not be there."""
    return shutil.disk_usage(next(each for each in (folder, *folder.parents) if each.is_dir())).free
