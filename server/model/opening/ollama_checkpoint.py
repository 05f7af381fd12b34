"""A model of Ollama's store, as a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from expert_store import FileName, read_json_object
from server.model.checkpoint.checkpoint import Checkpoint
from server.model.checkpoint.description import ModelDescription
from server.model.checkpoint.ollama_store import (
    LICENCE,
    PARAMETERS,
    PREFIX,
    TEMPLATE,
    read_ollama_manifest,
)
from server.model.opening.gguf_checkpoint import GgufCheckpoint
from server.setting_values import SAMPLING_RANGES, STOPS

RENAMED = {"repeat_penalty": "repetition_penalty", "stop": STOPS}  # transformers' names of Ollama's parameters
UNUSED = {  # layers, with what is done instead
    TEMPLATE: "Ollama's template, which is in Go's language, is not used: the file's own chat template is",
    "system": "Ollama's system prompt is not used: send it as a message of role system",
    "messages": "Ollama's messages at the start of chats are not used: send them with each request",
    "projector": "Ollama's file with the image part of the model is not used: images are not read from GGUF",
}


class OllamaCheckpoint(GgufCheckpoint):
    """The GGUF file that a manifest of Ollama names, with the manifest's parameters; see ``Checkpoint``.

    Raises:
        CheckpointError, ModelError: see ``read_ollama_manifest``.
    """

    def __init__(self, manifest: Path, original: Checkpoint | None = None):
        self._manifest = read_ollama_manifest(manifest)
        super().__init__(self._manifest.weights.parent, FileName(self._manifest.weights.name), original)

    @property
    def name(self) -> str:
        """The name by which it was given."""
        return f"{PREFIX}{self._manifest.name}"

    def describe(self) -> ModelDescription:
        """Describe the file, with the licence of the manifest."""
        found = super().describe()
        return replace(found, licence=self._manifest.text(LICENCE) or found.licence)

    def generation_values(self) -> Mapping[str, Any] | None:
        """Return the values of the file, over which those of the manifest count."""
        return {**(super().generation_values() or {}), **self._parameters}

    def notes(self) -> list[str]:
        """Name the layers of the manifest that are not used."""
        ignored = sorted(set(self._stored) - {"stop", *SAMPLING_RANGES, *RENAMED})
        about = [f"Ollama's parameters {', '.join(ignored)} are not used"] if ignored else []
        return [*super().notes(), *(note for kind, note in UNUSED.items() if kind in self._manifest.blobs), *about]

    @property
    def _parameters(self) -> dict[str, Any]:
        named = {RENAMED.get(key, key): value for key, value in self._stored.items()}
        return {key: value for key, value in named.items() if key in {STOPS, *SAMPLING_RANGES}}

    @property
    def _stored(self) -> dict[str, Any]:
        blob = self._manifest.blobs.get(PARAMETERS)
        return {} if blob is None else read_json_object(blob)
