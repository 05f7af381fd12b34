"""Finds adapters and mixtures in a folder, by the files that such folders have."""

from __future__ import annotations

import os
from pathlib import Path

from server.model.lora import gate_files, peft_config


def is_adapter(folder: Path) -> bool:
    """Return True if a folder has the configuration of an adapter or of a mixture."""
    return any(os.path.lexists(folder / name) for name in (peft_config.CONFIG_NAME, gate_files.CONFIG_NAME))


def adapters_in(folder: Path) -> list[Path]:
    """Return the adapters and mixtures directly in a folder, sorted by name.

    Raises:
        OSError: it can't be read.
    """
    return sorted(path for path in folder.iterdir() if path.is_dir() and is_adapter(path))
