"""Default sampling parameters and end tokens, from ``generation_config.json`` and from settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.model.checkpoint.checkpoint import Checkpoint
from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.errors import ModelError
from server.setting_values import GENERATION_FILE, MAX_NEW_TOKENS, SAMPLING_RANGES, STOPS, check_sampling


@dataclass(frozen=True)
class GenerationConfig:
    """The ``generation_config.json`` of a checkpoint; empty if it has none."""

    eos_token_ids: frozenset[int]
    sampling: dict[str, Any]  # numbers, by a name in SAMPLING_RANGES, or MAX_NEW_TOKENS
    stops: tuple[str, ...] = ()  # texts that end a completion


def read_generation_config(
    checkpoint: Checkpoint, source: str = "auto", overrides: Mapping[str, Any] | None = None
) -> GenerationConfig:
    """Read a checkpoint's defaults for generation.

    Args:
        checkpoint: the model's.
        source: ``auto`` for the file of the checkpoint; ``vllm`` for its end tokens alone; or another folder with such
            a file.
        overrides: defaults that count more than those of the file.

    Raises:
        CheckpointError: the file can't be read, or is not a JSON object.
        ModelError: a value is out of range; the message names the value.
    """
    chosen = checkpoint if source in {"auto", "vllm"} else FolderCheckpoint(Path(source))
    values = chosen.generation_values()
    if values is None:
        return GenerationConfig(frozenset(), dict(overrides or {}))
    # A model's own limit is that of its authors' examples; one in a folder that was chosen for it counts.
    names = {"auto": list(SAMPLING_RANGES), "vllm": []}.get(source, [*SAMPLING_RANGES, MAX_NEW_TOKENS])
    sampling = {name: values[name] for name in names if values.get(name) is not None}
    try:
        check_sampling(sampling)
    except ValueError as error:
        raise ModelError(f"{GENERATION_FILE} of {chosen.name}: {error}") from error
    ends = values.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if not all(type(end) is int for end in ends):
        raise ModelError(f"{GENERATION_FILE} of {chosen.name}: eos_token_id is {ends!r}, not token ids")
    stops = values.get(STOPS) if names else None
    stops = [stops] if isinstance(stops, str) else stops or []
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise ModelError(f"{GENERATION_FILE} of {chosen.name}: {STOPS} is {stops!r}, not a list of texts")
    return GenerationConfig(frozenset(ends), sampling | dict(overrides or {}), tuple(stops))
