"""Checks a mixture of adapters with a trained gate against a model, without serving it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from server.byte_sizes import format_bytes
from server.loading.load_model import ModelParts
from server.model.adapters.errors import AdapterError
from server.model.lora.gate_files import CONFIG_NAME, GateConfig, GateFiles, read_gate, read_gate_config
from server.model.lora.pages import page_layout
from server.model.lora.peft_files import locate
from server.model.trunk.adapter_targets import lora_targets
from server.model.trunk.fingerprint import fingerprint


@dataclass(frozen=True)
class GateCheck:
    """The mixture in a folder, and what a model makes of it."""

    folder: Path
    model: str
    config: GateConfig
    files: GateFiles | None  # None if it is refused
    refusal: str | None  # the error of the server


def check_gate(path: Path, load: Callable[[], ModelParts]) -> GateCheck:
    """Check a mixture as the server does.

    Args:
        load: returns the model, whose experts are not read.

    Raises:
        AdapterError: the gate's configuration can't be read.
        ModelError, ExpertStoreError, SettingsError: the model can't be loaded.
    """
    folder = locate(str(path), None)
    config = read_gate_config(folder / CONFIG_NAME)
    parts = load()
    targets = lora_targets(parts.trunk)
    files, refusal = None, None
    try:
        files = read_gate(folder, targets, page_layout(targets).slot_bytes, lambda: fingerprint(parts.trunk))
    except AdapterError as error:
        refusal = str(error)
    return GateCheck(folder, parts.name, config, files, refusal)


def describe_gate(check: GateCheck) -> str:
    """Return lines about a mixture for people."""
    config, files = check.config, check.files
    lines = [
        f"mixture:  {check.folder}",
        f"model:    {check.model}",
        f"gate:     the best {config.top_k} of {len(config.adapters)} adapters for each token and layer",
    ]
    if files is None:
        return "\n".join(lines)
    for name, each in zip(config.adapters, files.adapters, strict=True):
        ranks = ", ".join(map(str, each.ranks))
        lines.append(f"adapter:  {name}, {each.match.num_applied} tensors of rank {ranks}, {format_bytes(each.nbytes)}")
    memory = sum(each.memory_bytes for each in files.adapters)
    lines.append(f"memory:   {format_bytes(memory)}, and {format_bytes(files.nbytes)} for the gate")
    return "\n".join(lines)
