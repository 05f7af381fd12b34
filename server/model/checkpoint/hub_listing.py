"""Lists a model's files on the Hugging Face hub, and remembers them for starts without a network."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from pathlib import Path

from huggingface_hub import HfApi, ModelInfo, constants, try_to_load_from_cache
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the hub library's client
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]  # documented, not exported
from pydantic import TypeAdapter, ValidationError

from expert_store.file_name import FileName
from expert_store.io.disk_bytes import disk_bytes
from expert_store.io.file_names import MISTRAL_WEIGHTS
from expert_store.packed.manifest import MANIFEST_NAME
from server.model.checkpoint.hub_answers import REMEDY, Commit, Sha256, check_answers
from server.model.checkpoint.hub_failures import readable_answers
from server.model.checkpoint.local_files import GGUF, choose_gguf, files_of_gguf, gguf_label, gguf_models, split_tag
from server.model.errors import ModelError, check_formats, in_mlx_format
from server.model.quantised import mlx
from server.redaction import redact

# Weights as safetensors, and files of tokenizer and config; never code or pickles.
SMALL_FILES = ["*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
WEIGHTS = (".safetensors", GGUF, ".pack")  # suffixes of files with weights
HUB_FILES = ["*.safetensors", "*.pack", *SMALL_FILES]
MLX = "mlx"  # the name of the library on the hub
MAX_FILE_BYTES = 1 << 62  # that a hub may tell
NOT_WEIGHTS = [f"{MISTRAL_WEIGHTS}*.safetensors"]  # the same weights once more, in Mistral's format


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
def list_files(model: str, revision: str | None) -> Listing:
    """List the files of a model, of which a tag chooses a GGUF file.

    Raises:
        HTTPError, OSError: the hub does not answer, or refuses.
    """
    repository, tag = split_tag(model)
    info = model_info(repository, revision)
    names = FileName.valid(file.rfilename for file in info.siblings or ())
    has_safetensors = any(name.endswith(".safetensors") for name in names)
    is_gguf = tag is not None or (not has_safetensors and gguf_models(names))
    return listing_of(info, repository, revision, choose_gguf(repository, tag, names) if is_gguf else None)


def model_info(repository: str, revision: str | None) -> ModelInfo:
    check_answers()
    return HfApi().model_info(repository, revision=revision, files_metadata=True)


def listing_of(info: ModelInfo, repository: str, revision: str | None, gguf: FileName | None = None) -> Listing:
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
        listing = list_files(model, revision)
    except (HTTPError, OSError) as error:  # the attempt to download raises the reason
        return None if is_refusal(error) else remembered(model, revision)
    check_format(listing)
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


def remembered(model: str, revision: str | None) -> Listing | None:
    repository, tag = split_tag(model)
    try:
        return TypeAdapter(Listing).validate_json(_about(repository, revision, tag).read_bytes())
    except (OSError, ValidationError):
        return None


def _about(repository: str, revision: str | None, tag: str | None) -> Path:
    asked = hashlib.blake2b(repr((revision, tag and tag.lower())).encode(), digest_size=20).hexdigest()
    return partial_folder(repository) / f"{asked}.listing"


def is_refusal(error: Exception) -> bool:
    """Return True if the hub answers, and would not answer otherwise later."""
    answer = getattr(error, "response", None)
    return answer is not None and answer.status_code < HTTPStatus.INTERNAL_SERVER_ERROR


def check_format(listing: Listing) -> None:
    if listing.gguf is not None:
        return
    check_formats(listing.model, listing.names)
    if listing.library == MLX and listing.model_type not in mlx.FAMILIES:
        raise in_mlx_format(listing.model, listing.originals)
