"""Checks an adapter against a model, without serving it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from server.byte_sizes import format_bytes
from server.loading.load_model import ModelParts, load_model
from server.model.adapters.errors import AdapterError
from server.model.lora.pages import page_layout
from server.model.lora.pairs import LoraPair, Match
from server.model.lora.peft_config import PeftConfig, read_peft_config
from server.model.lora.peft_files import find_files, locate, match_tensors, read_adapter
from server.model.transformers_output import silence_transformers
from server.model.trunk.adapter_targets import lora_targets
from server.settings import ServeSettings


@dataclass(frozen=True)
class AdapterCheck:
    """The adapter in a folder, and what of it a model can take."""

    folder: Path
    model: str
    config: PeftConfig
    match: Match
    page_bytes: int
    memory_bytes: int  # 0 if it is refused
    refusal: str | None  # the error of the server


def load_quietly(model: str | None, settings: ServeSettings) -> ModelParts:
    """Load a model's trunk without progress bars and messages of transformers.

    Raises:
        ModelError, ExpertStoreError, SettingsError: it can't be loaded.
    """
    silence_transformers()
    return load_model(model, settings)


def check_adapter(path: Path, load: Callable[[], ModelParts]) -> AdapterCheck:
    """Check an adapter as the server does.

    Args:
        load: returns the model, whose experts are not read.

    Raises:
        AdapterError: the adapter's files can't be read.
        ModelError, ExpertStoreError, SettingsError: the model can't be loaded.
    """
    folder = locate(str(path), None)
    config_path, weights = find_files(folder)
    config = read_peft_config(config_path)
    parts = load()
    targets = lora_targets(parts.trunk)
    page_bytes = page_layout(targets).slot_bytes
    match = match_tensors(weights, config, targets)
    memory_bytes, refusal = 0, None
    try:
        memory_bytes = read_adapter(folder, targets, page_bytes).memory_bytes
    except AdapterError as error:
        refusal = str(error)
    return AdapterCheck(
        folder, parts.name, config, match=match, page_bytes=page_bytes, memory_bytes=memory_bytes, refusal=refusal
    )


def describe(check: AdapterCheck) -> str:
    """Return lines about an adapter for people."""
    pairs, match = check.match.pairs, check.match
    ranks = Counter(pair.rank for pair in pairs)
    nbytes = sum(pair.down.extent.nbytes + pair.up.extent.nbytes for pair in pairs)
    lines = [
        f"adapter: {check.folder}",
        f"model:   {check.model}" + (f" (trained on {check.config.base_model})" if check.config.base_model else ""),
        f"tensors: {match.summary}, {format_bytes(nbytes)}",
        "ranks:   " + (", ".join(f"{rank} ({ranks[rank]} matrices)" for rank in sorted(ranks)) or "none"),
        "targets: " + (", ".join(f"{name} ({count})" for name, count in sorted(_targets(pairs).items())) or "none"),
    ]
    if check.memory_bytes:
        num_pages = check.memory_bytes // check.page_bytes
        pages = "1 page" if num_pages == 1 else f"{num_pages} pages"
        lines.append(f"memory:  {format_bytes(check.memory_bytes)}, {pages} of {format_bytes(check.page_bytes)}")
    return "\n".join(lines)


def _targets(pairs: tuple[LoraPair, ...]) -> Counter[str]:
    """Return the number of matrices by the last part of their names."""
    return Counter(
        pair.target.rpartition(".")[2] if isinstance(pair.target, str) else f"experts.{pair.target[1]}"
        for pair in pairs
    )
