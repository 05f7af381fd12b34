"""A checkpoint's default sampling parameters and end tokens, from ``generation_config.json``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expert_store import read_json_object
from server.model.errors import ModelError

# The settings that serve as defaults, as in vLLM, and their ranges.
RANGES = {
    "temperature": (0, 2),
    "top_p": (1e-6, 1),
    "top_k": (0, 2**31 - 1),
    "min_p": (0, 1),
    "repetition_penalty": (0.01, 2),
}


@dataclass(frozen=True)
class GenerationConfig:
    """The ``generation_config.json`` of a checkpoint; empty if it has none."""

    eos_token_ids: frozenset[int]
    sampling: dict[str, Any]  # numbers, by a name in RANGES


def read_generation_config(folder: Path) -> GenerationConfig:
    """Read a checkpoint's ``generation_config.json``.

    Raises:
        CheckpointError: the file can't be read, or is not a JSON object.
        ModelError: a value is out of range; the message names the value.
    """
    path = folder / "generation_config.json"
    if not os.path.lexists(path):
        return GenerationConfig(frozenset(), {})
    values = read_json_object(path)
    sampling = {name: values[name] for name in RANGES if values.get(name) is not None}
    for name, value in sampling.items():
        low, high = RANGES[name]
        if not _is_number(value) or not low <= value <= high:
            raise ModelError(f"{path.name} of {folder.name}: {name} is {value!r}, not a number from {low} to {high}")
    ends = values.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if not all(type(end) is int for end in ends):
        raise ModelError(f"{path.name} of {folder.name}: eos_token_id is {ends!r}, not token ids")
    return GenerationConfig(frozenset(ends), sampling)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
