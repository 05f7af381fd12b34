"""The models whose configs are mutated: a tiny checkpoint of each family, and a GGUF file of each architecture."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from server.model.checkpoint.gguf.gguf_file import GgufFile
from tests.byte_tokenizer import save_byte_tokenizer
from tests.checkpoints import save_checkpoint
from tests.families import FAMILIES, make_config
from tests.gguf.models import FILES, MODELS

GGUF = "gguf:"  # begins the name of a subject that is a file
CONFIG = "config.json"
SKIPPED = ("tokenizer.", "general.", "quantize.")  # keys of GGUF files that are not the architecture's

NAMES = (
    *(name for name, family in FAMILIES.items() if family.refusal is None),
    *(f"{GGUF}{name}" for name in MODELS),
)
Path_: TypeAlias = tuple[str | int, ...]  # keys and places in lists, from the outermost on


def make_subject(name: str, root: Path) -> Path:
    """Write a subject, once, and return its folder or file."""
    if name.startswith(GGUF):
        return FILES / f"{name.removeprefix(GGUF)}.gguf"
    folder = root / name
    if not (folder / CONFIG).exists():
        config = make_config(name)
        save_checkpoint(config, folder)
        save_byte_tokenizer(folder)
        # Every setting is written, those with their default too.
        (folder / CONFIG).write_text(json.dumps(config.to_dict(), indent=1, default=str))
    return folder


def read_values(place: Path) -> dict[str, Any]:
    """Return the config of a subject, or the keys of its architecture in the header."""
    if place.is_dir():
        values: dict[str, Any] = json.loads((place / CONFIG).read_text())
        return values
    metadata = GgufFile.open(place.parent, place.name).metadata
    return {key: _plain(value) for key, value in metadata.items() if not key.startswith(SKIPPED)}


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def leaves(values: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """Yield the settings that hold no others, and all lists."""
    entries: Iterator[tuple[str | int, Any]] | None = None
    if isinstance(values, Mapping):
        entries = iter(values.items())
    elif isinstance(values, list):
        entries = iter(enumerate(values))
        yield path, values
    else:
        yield path, values
    for key, value in entries or ():
        yield from leaves(value, (*path, key))
