"""Finds models in a local store of Ollama. Torch-free, so that commands refuse a wrong name before they import torch.

A manifest, ``manifests/HOST/OWNER/NAME/TAG``, names blobs by digest: the GGUF file, a template, parameters, a licence.
Layout: ``types/model/name.go`` and ``manifest/paths.go`` of Ollama.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from expert_store import CheckpointError, read_json_object, read_metadata
from server.model.errors import ModelError

PREFIX = "ollama:"
VARIABLE = "OLLAMA_MODELS"
FOLDERS = (Path("~/.ollama/models"), Path("/usr/share/ollama/.ollama/models"))  # of a user, and of the Linux service
HOST, OWNER, TAG = "registry.ollama.ai", "library", "latest"
PART = re.compile(r"[A-Za-z0-9_][\w.-]*")  # of a name
DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
KIND = "application/vnd.ollama.image."  # begins the media types of layers
WEIGHTS, TEMPLATE, PARAMETERS, LICENCE = "model", "template", "params", "license"
PART_BYTES = 1 << 20  # that are read at a time
MAX_TEXT_BYTES = 1 << 20
MAX_PARTS = 3  # of a name: host, owner and name
MAX_NAMED = 20


@dataclass(frozen=True)
class OllamaManifest:
    """A model of Ollama's store."""

    path: Path
    name: str  # as Ollama prints it
    blobs: Mapping[str, Path]  # by the kind of the layer; of several licences the first

    @property
    def weights(self) -> Path:
        """The GGUF file."""
        return self.blobs[WEIGHTS]

    def text(self, kind: str) -> str:
        """Return the content of a small layer; empty if there is none.

        Raises:
            CheckpointError: it can't be read.
        """
        blob = self.blobs.get(kind)
        if blob is None or blob.stat().st_size > MAX_TEXT_BYTES:
            return ""
        return read_metadata(blob, _remedy(self.name)).decode("utf-8", "replace")


def is_ollama(model: str) -> bool:
    """Return True if a model's name is one of Ollama's store."""
    return model.startswith(PREFIX)


def find_manifest(model: str) -> Path:
    """Return the manifest of a model.

    Args:
        model: ``ollama:NAME``, with ``:TAG`` unless that is ``latest``. A NAME that is not of Ollama's library is
            ``OWNER/NAME`` or ``HOST/OWNER/NAME``.

    Raises:
        ModelError: there is no such model; the message lists what there is.
    """
    place = _place(model)
    stores = _stores()
    for store in stores:
        manifest = store / "manifests" / place
        if manifest.is_file():
            return manifest
    found = sorted({manifest_name(path) for store in stores for path in _manifests(store)})
    name = model.removeprefix(PREFIX)
    if not found:
        looked = " and ".join(map(str, stores))
        raise ModelError(f"there are no models of Ollama in {looked}; set {VARIABLE} to their folder")
    named = ", ".join(found[:MAX_NAMED]) + (", ..." if len(found) > MAX_NAMED else "")
    raise ModelError(
        f"Ollama has no {name} on this machine, but {named}; give one of these, or run `ollama pull {name}`"
    )


def manifest_name(path: Path) -> str:
    """Return a model's name as Ollama prints it, by the path of its manifest."""
    host, owner, name, tag = path.parts[-4:]
    parts = [host, owner, name]
    if host == HOST:
        parts = [name] if owner == OWNER else [owner, name]
    return f"{'/'.join(parts)}:{tag}"


def read_ollama_manifest(path: Path) -> OllamaManifest:
    """Read a manifest, and find the blobs of its layers.

    Raises:
        CheckpointError: the manifest is damaged, or a blob is missing.
        ModelError: the model is not one GGUF file.
    """
    name = manifest_name(path)
    remedy = _remedy(name)
    layers = read_json_object(path, remedy).get("layers")
    if not isinstance(layers, list):
        raise CheckpointError(f"{path} is no manifest of Ollama; {remedy}")
    kinds: dict[str, list[Path]] = {}
    for layer in layers:
        kind, digest = (layer.get(key) for key in ("mediaType", "digest")) if isinstance(layer, dict) else (None, None)
        match = DIGEST.fullmatch(digest) if isinstance(digest, str) else None
        if match is None or not isinstance(kind, str):
            raise CheckpointError(f"{path} is no manifest of Ollama; {remedy}")
        blob = path.parents[4] / "blobs" / f"sha256-{match[1]}"
        if not blob.is_file():
            raise CheckpointError(f"{PREFIX}{name} lacks its blob {blob}; {remedy}")
        kinds.setdefault(kind.removeprefix(KIND), []).append(blob)
    if "adapter" in kinds:
        raise ModelError(f"{PREFIX}{name} is a model with an adapter in GGUF, which is not read; give the model alone")
    if len(kinds.get(WEIGHTS, ())) != 1:
        raise ModelError(
            f"{PREFIX}{name} has {len(kinds.get(WEIGHTS, ()))} GGUF files, not one; give the model in safetensors, or "
            "another GGUF file of it"
        )
    return OllamaManifest(path, name, {kind: blobs[0] for kind, blobs in kinds.items()})


def damaged_blobs(manifest: OllamaManifest, advance: Callable[[int], object]) -> dict[str, str]:
    """Read all blobs of a model, and return those that do not have the digest in their name, with the reason.

    Args:
        advance: called with the numbers of bytes that were read.
    """
    damaged = {}
    for blob in manifest.blobs.values():
        digest = sha256()
        with blob.open("rb") as file:
            while part := file.read(PART_BYTES):
                digest.update(part)
                advance(len(part))
        if blob.name != f"sha256-{digest.hexdigest()}":
            damaged[blob.name] = f"its content has another digest; {_remedy(manifest.name)}"
    return damaged


def _remedy(name: str) -> str:
    return f"run `ollama pull {name}` again"


def _place(model: str) -> Path:
    """Return the path of a manifest below the folder of all."""
    name, _, tag = model.removeprefix(PREFIX).partition(":")
    parts = name.split("/")
    if len(parts) > MAX_PARTS or not all(map(PART.fullmatch, (*parts, tag or TAG))):
        raise ModelError(f"{model} is not the name of a model of Ollama; give {PREFIX}NAME or {PREFIX}NAME:TAG")
    return Path(*(HOST, OWNER)[: MAX_PARTS - len(parts)], *parts, tag or TAG)


def _stores() -> list[Path]:
    given = os.environ.get(VARIABLE)
    return [Path(given)] if given else [folder.expanduser() for folder in FOLDERS]


def _manifests(store: Path) -> Iterator[Path]:
    """Yield the manifests of a store, as far as they can be listed."""
    try:
        yield from (path for path in (store / "manifests").glob("*/*/*/*") if path.is_file())
    except OSError:
        return
