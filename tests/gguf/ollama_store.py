"""Stores of Ollama, with tiny models."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

KIND = "application/vnd.ollama.image."
GO_TEMPLATE = "{{ range .Messages }}<|im_start|>{{ .Content }}<|im_end|>{{ end }}"


def add_model(
    store: Path,
    file: Path,
    place: str = "registry.ollama.ai/library/tiny/30b",
    texts: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """Add a model to a store as `ollama pull` does, and return its manifest.

    Args:
        place: of the manifest.
        texts: small layers, by the end of their media types.
    """
    blobs = store / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    weights = _digest(file.read_bytes())
    shutil.copy(file, blobs / weights.replace(":", "-"))
    layers = [{"mediaType": f"{KIND}model", "digest": weights, "size": file.stat().st_size}]
    for kind, text in {"template": GO_TEMPLATE, **texts}.items():
        digest = _digest(text.encode())
        (blobs / digest.replace(":", "-")).write_text(text)
        layers.append({"mediaType": f"{KIND}{kind}", "digest": digest, "size": len(text)})
    manifest = store / "manifests" / place
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    return manifest


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
