"""Reads a folder that PEFT has written, and checks all of it against a model before anything is served from it."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from expert_store import read_tensor
from expert_store.catalog import ParameterRecipe
from expert_store.errors import ExpertStoreError
from expert_store.io.safetensors_index import read_index
from server.model.adapters.errors import AdapterError
from server.model.errors import PICKLES
from server.model.lora.pages import AdapterPages, divide
from server.model.lora.pairs import Match, match_pairs
from server.model.lora.peft_config import CONFIG_NAME, PeftConfig, read_peft_config
from server.model.lora.targets import LoraTargets
from server.model.lora_adapter import ExpertTarget

WEIGHTS_NAME = "adapter_model.safetensors"


@dataclass(frozen=True)
class AdapterFiles:
    """The files of an adapter, all of which were read and checked."""

    folder: Path
    config: PeftConfig
    match: Match
    pages: AdapterPages
    checksums: tuple[int, ...]  # of each page

    @property
    def ranks(self) -> list[int]:
        """All ranks of its matrices, in ascending order."""
        return sorted({pair.rank for pair in self.match.pairs})

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors in the file."""
        return sum(pair.down.extent.nbytes + pair.up.extent.nbytes for pair in self.match.pairs)

    @property
    def memory_bytes(self) -> int:
        """Bytes of its pages in memory."""
        return len(self.checksums) * self.pages.page_bytes

    @cached_property
    def targets(self) -> frozenset[str | ExpertTarget]:
        """The linear layers and the experts' matrices that it adds to."""
        return frozenset(each.target for each in self.pages.additions)

    @cached_property
    def recipes(self) -> list[dict[str, ParameterRecipe]]:
        """For each page, how a store reads it."""
        return self.pages.recipes(self.checksums)


def locate(path: str, root: Path | None) -> Path:
    """Return the folder of an adapter, without links.

    Args:
        path: absolute, or relative to the root.
        root: the folder that must hold it; None if any may.

    Raises:
        AdapterError: there is no such folder, or it is outside the root.
    """
    if "\0" in path:
        raise AdapterError(f"{path!r} is no path")
    if root is None:
        return _resolve(Path(path))
    real_root = _resolve(root)
    if ".." in Path(path).parts:
        raise AdapterError(f"{path!r} must not contain '..'; give a path below {root}")
    folder = root / path  # an absolute path replaces the root
    if not (folder.is_relative_to(root) or folder.is_relative_to(real_root)):
        raise AdapterError(f"{path!r} is outside {root}; give a path below it")
    folder = _resolve(folder)
    if not folder.is_relative_to(real_root):
        raise AdapterError(f"{path!r} is a link out of {root}; copy the adapter into it")
    return folder


def without_root(message: str, root: Path | None, name: str) -> str:
    """Return an error's message with paths relative to a folder, for clients, who are not told where it is.

    Args:
        root: the folder; None if there is none to hide.
        name: that stands for the folder itself, such as its flag.
    """
    for place in () if root is None else {root.absolute(), root.resolve()}:
        if place != Path(place.anchor):
            message = message.replace(f"{place}/", "").replace(str(place), name)
    return message


def read_adapter(folder: Path, targets: LoraTargets, page_bytes: int, root: Path | None = None) -> AdapterFiles:
    """Read and check the adapter in a folder, all of its bytes included.

    Args:
        root: the folder that must hold the files, too, if they are links.

    Raises:
        AdapterError: it can't be used.
    """
    config_path, weights_path = find_files(folder, root)
    before = _state(weights_path)
    config = read_peft_config(config_path)
    match = match_tensors(weights_path, config, targets)
    if match.problems or not match.pairs:
        raise AdapterError(describe_problems(folder, match))
    pages = divide(match.pairs, page_bytes)
    checksums = tuple(_checksums(pages))
    if _state(weights_path) != before:
        raise AdapterError(f"{weights_path} changed while it was read; load it again when it is complete")
    return AdapterFiles(folder, config, match, pages, checksums)


def find_files(
    folder: Path, root: Path | None = None, config: str = CONFIG_NAME, weights: str = WEIGHTS_NAME
) -> tuple[Path, Path]:
    """Return the configuration and the weights of an adapter, without links.

    Args:
        root: the folder that must hold them; None if any may.
        config: name of the file, as ``weights``.

    Raises:
        AdapterError: one is missing, or the weights are pickled.
    """
    if not folder.is_dir():
        raise AdapterError(f"there is no folder {folder}; give one with {config} and {weights}")
    names = sorted(path.name for path in folder.iterdir())
    if config not in names:
        raise AdapterError(f"{folder} has no {config}; give a folder that PEFT has written")
    if weights not in names:
        pickles = [name for name in names if Path(name).suffix in PICKLES]
        if pickles:
            raise AdapterError(
                f"{folder} has pickled weights alone ({pickles[0]}), which are never opened; save the adapter with "
                "safe_serialization=True"
            )
        raise AdapterError(f"{folder} has no {weights}; the adapter is incomplete")
    paths = _resolve(folder / config), _resolve(folder / weights)
    real_root = None if root is None else _resolve(root)
    for path, name in zip(paths, (config, weights), strict=True):
        if real_root is not None and not path.is_relative_to(real_root):
            raise AdapterError(f"{folder / name} is a link out of {root}; copy the file into it")
        if not stat.S_ISREG(path.stat().st_mode):
            raise AdapterError(f"{folder / name} is not a regular file")
    return paths


def match_tensors(weights: Path, config: PeftConfig, targets: LoraTargets) -> Match:
    """Match the tensors of a file with a model.

    Raises:
        AdapterError: the file is damaged.
    """
    try:
        return match_pairs(read_index([weights]), config, targets)
    except (ExpertStoreError, OSError) as error:
        raise AdapterError(str(error)) from error


def describe_problems(folder: Path, match: Match) -> str:
    """Say why an adapter can't be applied completely."""
    nothing = "nothing in the file changes the model" if match.num_tensors else "the file has no tensors"
    first = match.problems[0] if match.problems else nothing
    more = f" (and {len(match.problems) - 1} more)" if len(match.problems) > 1 else ""
    return f"{folder}: {match.num_applied + match.num_idle} of {match.num_tensors} tensors fit the model; {first}{more}"


def _checksums(pages: AdapterPages) -> list[int]:
    try:
        return [
            pages.checksum(page, [read_tensor(source) for source in pages.sources(page)])
            for page in range(len(pages.pages))
        ]
    except (ExpertStoreError, OSError) as error:
        raise AdapterError(str(error)) from error


def _resolve(path: Path) -> Path:
    try:
        return path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # a loop of links
        reason = error.strerror if isinstance(error, OSError) else error
        raise AdapterError(f"{path} can't be opened: {reason}") from error


def _state(path: Path) -> tuple[int, int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
