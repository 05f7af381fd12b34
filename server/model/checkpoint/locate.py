"""Finds the folder of a model by its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from expert_store import FileName, is_pack, read_manifest
from server.model.checkpoint.download import cached_place, download, download_config
from server.model.checkpoint.hub_listing import list_upload
from server.model.checkpoint.local_files import GGUF, SPLIT_FILE, check_printable, find_gguf, local_files
from server.model.checkpoint.ollama_store import find_manifest, is_ollama, manifest_name
from server.model.checkpoint.remote.addresses import is_address, is_storage
from server.model.checkpoint.remote.place import RemotePlace, hub_place, storage_place, web_place
from server.model.errors import check_formats

BUNDLED = Path(__file__).resolve().parents[2] / "demo" / "model"
BUNDLED_NAME = "greenroom-demo"
CLASSIFIER = BUNDLED.parent / "classifier"  # the bundled text encoder
BUNDLED_NAMES = {BUNDLED: BUNDLED_NAME, CLASSIFIER: "greenroom-classifier"}


def find_checkpoint(model: str | None, revision: str | None) -> tuple[Path | RemotePlace, str]:
    """Return a model's place and name: those of ``find_local``, or of a download.

    Raises:
        ModelError: there is no such folder or repository, or the hub can't be reached.
        CheckpointError: the folder is packed, and its manifest is damaged.
    """
    return _find_local_or(model, lambda name: download(name, revision))


def find_served(model: str | None, revision: str | None) -> tuple[Path | RemotePlace, str]:
    """Return a model's place and name, without a download of the weights of a hub model.

    Raises:
        ModelError: there is no such folder or repository, or the hub can't be reached.
        CheckpointError: the folder is packed, and its manifest is damaged.
    """
    return _find_local_or(model, lambda name: _hub_or_cache(name, revision))


def _find_local_or(
    model: str | None, find_elsewhere: Callable[[str], Path | RemotePlace]
) -> tuple[Path | RemotePlace, str]:
    found = find_local(model)
    if found is not None:
        return found
    assert model is not None
    return find_elsewhere(model), model


def _hub_or_cache(model: str, revision: str | None) -> Path | RemotePlace:
    listing = list_upload(model, revision)
    if listing is None:
        return download(model, revision)  # as the cache has it, or else why the hub does not answer
    if all(listing.cached(path) is not None for path in listing.weights):
        return cached_place(listing)
    return hub_place(listing)


def find_local(model: str | None) -> tuple[Path | RemotePlace, str] | None:
    """Return the place and the name of a model that is not downloaded; None for a hub id.

    The place is a folder, a GGUF file, a manifest of Ollama's store, or a folder or a GGUF file on a web server.

    Raises:
        ModelError: there is no such folder and the name is not a hub id, the folder can't be read, or it is not a
            model's checkpoint.
        CheckpointError: the folder is packed, and its manifest is damaged.
    """
    if model is not None and is_address(model):
        place = storage_place(model) if is_storage(model) else web_place(model)
        return place, check_printable(place.short_name.removesuffix(GGUF))
    if model is None:
        return BUNDLED, BUNDLED_NAME
    names = local_files(model)
    return None if names is None else _find_file(model, names)


def _find_file(model: str, names: Sequence[FileName]) -> tuple[Path, str]:
    """Return the place and the name of a model on this machine.

    Args:
        names: of the files in its folder.
    """
    bundled = BUNDLED_NAMES.get(Path(model).resolve())
    if bundled is not None:
        return Path(model).resolve(), bundled
    if is_ollama(model):
        manifest = find_manifest(model)
        return manifest, manifest_name(manifest)
    folder = Path(model)
    if is_pack(folder):
        return folder, check_printable(read_manifest(folder).model)
    file = find_gguf(model, names)
    if file is not None:
        split = SPLIT_FILE.fullmatch(file.name)
        return file, check_printable(split[1] if split else file.stem)
    check_formats(model, names)
    return folder, check_printable(folder.resolve().name)


def find_original(model: str | None) -> Path | RemotePlace | None:
    """Return the place of the model that ``--config-from`` names; None if it names none.

    Of a hub model all files but the weights are downloaded.

    Raises:
        ModelError: there is no such folder or repository, or the hub can't be reached.
    """
    if model is None:
        return None
    found = find_local(model)
    return download_config(model) if found is None else found[0]


def config_folder(folder: Path) -> Path:
    """Return the folder of ``config.json`` and the tokenizer: the model's folder, or a subfolder of a pack.

    Raises:
        CheckpointError: the folder is packed, and its manifest is damaged.
    """
    return folder / read_manifest(folder).data if is_pack(folder) else folder
