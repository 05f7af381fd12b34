"""Downloads a model's files from the Hugging Face hub to the local cache."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from http import HTTPStatus
from pathlib import Path

from huggingface_hub import HfApi, ModelInfo, constants, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # for HTTPError
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # from the HTTP client that the hub's library uses
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]  # documented, not exported
from huggingface_hub.utils.tqdm import disable_progress_bars
from pydantic import TypeAdapter, ValidationError

from expert_store.file_name import FileName
from expert_store.io.disk_bytes import disk_bytes
from expert_store.io.file_names import MISTRAL_WEIGHTS
from expert_store.packed.manifest import MANIFEST_NAME
from server.byte_sizes import format_bytes
from server.model.checkpoint.hub_answers import REMEDY, Commit, Sha256, check_answers
from server.model.checkpoint.hub_failures import readable_answers
from server.model.checkpoint.local_files import GGUF, choose_gguf, files_of_gguf, gguf_label, gguf_models, split_tag
from server.model.errors import ModelError, check_formats, in_mlx_format
from server.model.quantised import mlx
from server.progress import polled_progress
from server.redaction import redact

log = logging.getLogger(__name__)

# Weights as safetensors, and files of tokenizer and config; never code or pickles.
SMALL_FILES = ["*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
WEIGHTS = (".safetensors", GGUF, ".pack")  # suffixes of files with weights
HUB_FILES = ["*.safetensors", "*.pack", *SMALL_FILES]
MLX = "mlx"  # the name of the library on the hub
MAX_FILE_BYTES = 1 << 62  # that a hub may tell
NOT_WEIGHTS = [f"{MISTRAL_WEIGHTS}*.safetensors"]  # the same weights once more, in Mistral's format
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
            listing = _ask(model, revision)
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
            info = _info(model, None)
        except (HTTPError, OSError) as error:
            return _from_cache(lambda: _snapshot(model, None, SMALL_FILES), error)
        return download_small_files(_listing(info, model, None))


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
        if _is_refusal(error):
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


@dataclass(frozen=True)
class Listing:
    """The files of a model on the hub."""

    model: str
    commit: Commit
    names: list[FileName]  # all files, but for those with names that no file of a model may have
    sizes: Mapping[FileName, int]  # bytes of the files to download
    library: str | None = None  # the one that the files are for, by the model's card
    originals: Sequence[str] = ()  # models that it was made from, by its card
    gguf: FileName | None = None  # the first file of the chosen model in the GGUF format
    checksums: Mapping[FileName, Sha256] = field(default_factory=dict)  # of those files whose pointers have it
    revision: str | None = None  # that was asked for
    model_type: str | None = None  # of its config

    def __post_init__(self) -> None:
        """Raise ValueError if a size is no number of bytes."""
        for name, size in self.sizes.items():
            if not isinstance(size, int) or not 0 <= size <= MAX_FILE_BYTES:
                raise ValueError(f"{str(size)[:20]} is not the size of {name}")

    def files_in(self, folder: str) -> dict[FileName, FileName]:
        """Return the paths of the files in a folder by their names; those of a GGUF model are in any."""
        parent = folder if self.gguf is None else self.gguf.folder
        return {path.last: path for path in self.sizes if path.folder == parent}

    @property
    def weights(self) -> list[FileName]:
        """Paths of the model's own files with weights: in the repository's root, or anywhere if it is a pack."""
        is_pack = MANIFEST_NAME in self.sizes
        return [path for path in (self.sizes if is_pack else self.files_in("").values()) if path.endswith(WEIGHTS)]

    def cached(self, path: FileName) -> Path | None:
        """Return where a file is in the hub's cache; None if it is not there."""
        found = try_to_load_from_cache(self.model, path, revision=self.commit)
        return Path(found) if isinstance(found, str) else None

    @property
    def missing_bytes(self) -> int:
        """Bytes that are still to be downloaded; partial files of an earlier attempt count as downloaded."""
        missing = [
            size
            for name, size in self.sizes.items()
            if not isinstance(try_to_load_from_cache(self.model, name, revision=self.commit), str)
        ]
        return max(0, sum(missing) - sum(map(disk_bytes, self._blobs.glob("*.incomplete"))))

    def stored_bytes(self) -> int:
        """Bytes of the model in the cache, over all its revisions."""
        return sum(map(disk_bytes, self._blobs.glob("*")))

    @property
    def _blobs(self) -> Path:
        return repository_folder(self.model) / "blobs"


def repository_folder(model: str) -> Path:
    """Return the folder of a repository in the hub's cache."""
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=model, repo_type="model")


def partial_folder(model: str) -> Path:
    """Return the folder beside a repository's files in the cache for those that are not complete."""
    return repository_folder(model) / "partial"


@readable_answers()
def _ask(model: str, revision: str | None) -> Listing:
    """List the files of a model, of which a tag chooses a GGUF file.

    Raises:
        HTTPError, OSError: the hub does not answer, or refuses.
    """
    repository, tag = split_tag(model)
    info = _info(repository, revision)
    names = FileName.valid(file.rfilename for file in info.siblings or ())
    has_safetensors = any(name.endswith(".safetensors") for name in names)
    is_gguf = tag is not None or (not has_safetensors and gguf_models(names))
    return _listing(info, repository, revision, choose_gguf(repository, tag, names) if is_gguf else None)


def _info(repository: str, revision: str | None) -> ModelInfo:
    check_answers()
    return HfApi().model_info(repository, revision=revision, files_metadata=True)


def _listing(info: ModelInfo, repository: str, revision: str | None, gguf: FileName | None = None) -> Listing:
    """Return what the hub tells of a model.

    Raises:
        ModelError: a name of a file to download, a checksum or the commit is none.
    """
    files = {file.rfilename: file for file in info.siblings or ()}
    names = FileName.valid(files)
    wanted: list[str] = [
        *(
            filter_repo_objects(files, allow_patterns=HUB_FILES, ignore_patterns=NOT_WEIGHTS)
            if gguf is None
            else files_of_gguf(gguf, names)
        )
    ]
    made_from = getattr(info.card_data, "base_model", None) or ()
    originals = [made_from] if isinstance(made_from, str) else [str(name) for name in made_from]
    model_type = (info.config or {}).get("model_type")
    try:
        return Listing(
            model=repository,
            commit=Commit(info.sha or revision),
            names=names,
            sizes={FileName(name): files[name].size or 0 for name in wanted},
            library=info.library_name,
            originals=originals,
            gguf=gguf,
            checksums={FileName(name): Sha256(lfs.sha256) for name in wanted if (lfs := files[name].lfs) is not None},
            revision=revision,
            model_type=model_type if isinstance(model_type, str) else None,
        )
    except ValueError as error:
        raise ModelError(
            f"{redact(constants.ENDPOINT)} tells of {repository} what can't be: {error}; {REMEDY}"
        ) from error


def list_upload(model: str, revision: str | None) -> Listing | None:
    """List the files of a hub model, as they are remembered if the hub can't be reached; None if it refuses.

    Raises:
        ModelError: they are neither safetensors nor GGUF files, or the tag names none or several of these.
    """
    try:
        listing = _ask(model, revision)
    except (HTTPError, OSError) as error:  # the attempt to download raises the reason
        return None if _is_refusal(error) else _remembered(model, revision)
    _check_format(listing)
    return listing


def remember(listing: Listing) -> None:
    """Keep what is known of a model's files, so that a part of them can be served while the hub can't be reached.

    Raises:
        OSError: the disk is full, or fails.
    """
    label = None if listing.gguf is None else gguf_label(listing.gguf)
    for path in {_about(listing.model, listing.revision, each) for each in (None, label)}:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f"{path.name}.{os.getpid()}")
        new.write_text(json.dumps(asdict(listing)), "utf-8")
        new.replace(path)


def _remembered(model: str, revision: str | None) -> Listing | None:
    repository, tag = split_tag(model)
    try:
        return TypeAdapter(Listing).validate_json(_about(repository, revision, tag).read_bytes())
    except (OSError, ValidationError):
        return None


def _about(repository: str, revision: str | None, tag: str | None) -> Path:
    asked = hashlib.blake2b(repr((revision, tag and tag.lower())).encode(), digest_size=20).hexdigest()
    return partial_folder(repository) / f"{asked}.listing"


def _is_refusal(error: Exception) -> bool:
    """Return True if the hub answers, and would not answer otherwise later."""
    answer = getattr(error, "response", None)
    return answer is not None and answer.status_code < HTTPStatus.INTERNAL_SERVER_ERROR


def cached_model(model: str, revision: str | None) -> Path:
    """Return the place of a hub model in the cache.

    Raises:
        LocalEntryNotFoundError: it is not there, or not all of what was downloaded is.
    """
    repository, tag = split_tag(model)
    listing = _remembered(model, _cached_commit(repository, revision))
    missing = [] if listing is None else [name for name in listing.sizes if listing.cached(name) is None]
    if missing:
        raise LocalEntryNotFoundError(f"the cache lacks {missing[0]} of {model}")
    if tag is not None:
        return _cached(repository, revision, tag)
    return _snapshot(repository, revision, HUB_FILES)


def _check_format(listing: Listing) -> None:
    if listing.gguf is not None:
        return
    check_formats(listing.model, listing.names)
    if listing.library == MLX and listing.model_type not in mlx.FAMILIES:
        raise in_mlx_format(listing.model, listing.originals)


def _check(listing: Listing) -> int:
    _check_format(listing)
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


@contextmanager
def hub_errors(model: str, revision: str | None, action: str) -> Iterator[None]:
    """Turn the hub's exceptions into a ``ModelError`` of one line.

    Args:
        action: the action that may fail, such as "downloading".
    """
    check_answers()
    repository, tag = split_tag(model)
    try:
        with readable_answers():
            yield
    except GatedRepoError as error:
        raise ModelError(
            f"{model} is gated: accept its licence at {redact(constants.ENDPOINT)}/{repository}, then run "
            "`hf auth login` (or set HF_TOKEN)"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"the hub has no model {model}, or it is private; check the name, or run `hf auth login` (or set HF_TOKEN)"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{model} has no revision {revision}; check --revision") from error
    except LocalEntryNotFoundError as error:
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub can't be reached"
        wanted = f"{repository} --include '*{tag}*'" if tag else repository
        raise ModelError(
            f"{model} is not a local folder, the hub cache {constants.HF_HUB_CACHE} does not have all its files, and "
            f"{reason}; run `hf download {wanted}` on a machine with network and set HF_HOME to its cache, or give a "
            "local folder"
        ) from error
    except HFValidationError as error:
        raise ModelError(
            f"there is no folder {model}, and it is not a valid hub name; give a local folder or OWNER/NAME"
        ) from error
    except (HTTPError, HfHubHTTPError, OSError) as error:
        reason = redact(str(error)).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{action} {model} failed: {reason}; run the same command again to continue") from error
