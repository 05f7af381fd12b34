"""Finds adapters and mixtures by the files that their folders have."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath

from server.model.lora.gate_files import CONFIG_NAME as GATE_CONFIG_NAME
from server.model.lora.peft_config import CONFIG_NAME
from server.weights.loadable_folders import find_folders

CONFIGS = {CONFIG_NAME, GATE_CONFIG_NAME}  # one of them is in the folder of each adapter and mixture


def is_adapter(folder: Path) -> bool:
    """Return True if a folder is an adapter or a mixture.

    Raises:
        OSError: it can't be read.
    """
    return has_adapter([path.name for path in folder.iterdir()])


def has_adapter(names: Collection[str]) -> bool:
    """Return True if a folder with files of these names is an adapter or a mixture."""
    return not CONFIGS.isdisjoint(names)


def find_adapters(root: Path) -> list[str]:
    """Return the paths of adapters and mixtures relative to a folder, without those that are part of a mixture.

    Raises:
        OSError: the folder can't be read.
    """
    return outermost(find_folders(root, has_adapter))


def outermost(paths: Iterable[str]) -> list[str]:
    """Return the paths that are not within another one."""
    found = {*paths}
    return sorted(path for path in found if found.isdisjoint(map(str, PurePosixPath(path).parents)))
