"""Descriptions of checkpoints, for lists of models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from expert_store import CheckpointError, read_metadata
from server.model.quantised.scheme import quantisation_of

PLAIN = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}  # names of dtypes in lists of models
LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md")
MAX_LICENCE_BYTES = 1 << 16


@dataclass(frozen=True)
class ModelDescription:
    """A checkpoint as lists of models show it.

    Args:
        format: ``safetensors``, ``gguf`` or ``greenroom`` for a pack.
        architecture: its name in that format.
        weights: the format of its weights, such as ``BF16`` or ``Q4_K_M``.
        num_parameters: of the files; None for those of the model.
        licence: its name or text; empty if the checkpoint has none.
        metadata: further values, by the names that llama.cpp has for them.
    """

    format: str
    architecture: str
    weights: str
    num_parameters: int | None = None
    licence: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


def describe_folder(folder: Path, config: PreTrainedConfig) -> ModelDescription:
    """Describe a folder of safetensors."""
    return ModelDescription(
        "safetensors", config.get_text_config().model_type, stored_weights(config), licence=read_licence(folder)
    )


def stored_weights(config: PreTrainedConfig) -> str:
    """Return the method that quantised the weights, or their dtype."""
    quantised = quantisation_of(config)
    if quantised is not None:
        return str(quantised.get("quant_method", "")).upper()
    dtype = str(config.get_text_config().dtype or config.dtype).removeprefix("torch.")
    return PLAIN.get(dtype, "")


def read_licence(folder: Path) -> str:
    """Return the text of the licence in a folder; empty if there is none that can be read."""
    for path in (folder / name for name in LICENCES):
        try:
            if path.is_file() and path.stat().st_size <= MAX_LICENCE_BYTES:
                return read_metadata(path).decode("utf-8", "replace")
        except (OSError, CheckpointError):
            continue
    return ""
