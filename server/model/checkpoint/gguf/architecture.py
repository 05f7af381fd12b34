"""An architecture of llama.cpp, as a family of ``server/model/families`` declares it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from server.model.checkpoint.gguf.gguf_file import GgufFile
from server.model.checkpoint.gguf.known_keys import Use
from server.model.checkpoint.gguf.places import MODEL, Places


@dataclass(frozen=True)
class Architecture:
    """An architecture of llama.cpp, as transformers computes it."""

    name: str  # in the files
    config: Callable[[GgufFile], dict[str, Any]]  # its values
    layer: Places  # by the leaf of the first tensor
    keys: Mapping[str, Use] = field(default_factory=dict)  # of the metadata, beside those of all architectures
    model: Places = field(default_factory=lambda: MODEL)
    experts: str = "mlp.experts"  # the module of experts in a layer
