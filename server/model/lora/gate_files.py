"""Reads a folder with a trained gate and its adapters, and checks all of it before anything is served from it.

``gate_config.json`` names the adapters, each in a folder of its name in PEFT's format. ``gate_model.safetensors`` has
for each linear layer that they add to a tensor of that name: ``(adapters, inputs)``, a row for each adapter.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from expert_store import read_tensor
from expert_store.catalog import TensorSource
from expert_store.errors import ExpertStoreError
from expert_store.io.safetensors_index import read_index
from server.model.adapters.errors import AdapterError
from server.model.lora.pairs import READABLE
from server.model.lora.peft_config import read_json
from server.model.lora.peft_files import AdapterFiles, find_files, locate, read_adapter
from server.model.lora.target_names import TargetNames
from server.model.lora.targets import LoraTargets
from server.model.lora_adapter import ExpertTarget

CONFIG_NAME = "gate_config.json"
WEIGHTS_NAME = "gate_model.safetensors"
BASE_FIELD = "greenroom_base"  # fingerprint of the base model
FIELDS = {"adapters", "top_k", "temperature", BASE_FIELD}
ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MAX_ADAPTERS = 64
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 1e3

Vectors = Mapping[str, torch.Tensor]  # float32 (inputs,) each, by the name of a linear layer


@dataclass(frozen=True)
class GateConfig:
    """The settings of a gate.

    Args:
        adapters: names of their folders, in the order of the tensors' rows.
        base: fingerprint of the model that it was trained for; None if it is not given.
    """

    adapters: tuple[str, ...]
    top_k: int
    temperature: float
    base: str | None


@dataclass(frozen=True)
class GateFiles:
    """A gate and its adapters, all of which were read and checked.

    Args:
        adapters: as ``config.adapters``.
        vectors: of each adapter, for the layers that it adds to.
    """

    folder: Path
    config: GateConfig
    adapters: tuple[AdapterFiles, ...]
    vectors: tuple[Vectors, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the vectors in memory."""
        return sum(vector.nbytes for vectors in self.vectors for vector in vectors.values())


def is_gate(folder: Path) -> bool:
    """Return True if a folder has a gate, and is no adapter."""
    return os.path.lexists(folder / CONFIG_NAME)


def read_gate(
    folder: Path,
    targets: LoraTargets,
    page_bytes: int,
    find_fingerprint: Callable[[], str],
    root: Path | None = None,
) -> GateFiles:
    """Read and check the gate in a folder and its adapters, all of their bytes included.

    Args:
        find_fingerprint: returns that of the model.
        root: the folder that must hold the files, too, if they are links.

    Raises:
        AdapterError: they can't be used.
    """
    config_path, weights_path = find_files(folder, root, CONFIG_NAME, WEIGHTS_NAME)
    config = read_gate_config(config_path)
    if config.base is not None and config.base != find_fingerprint():
        raise AdapterError(
            f"{folder / CONFIG_NAME}: the gate was trained for a model with the fingerprint {config.base}, not for "
            f"this one with {find_fingerprint()}; train it again"
        )
    adapters = []
    for name in config.adapters:
        if not os.path.lexists(folder / name):
            raise AdapterError(f"{folder} has no folder {name!r}, which {CONFIG_NAME} names; the gate is incomplete")
        adapters.append(read_adapter(locate(str(folder / name), root), targets, page_bytes, root))
        _check_targets(folder / name, adapters[-1], targets)
    rows = _read_rows(weights_path, adapters, targets)
    vectors = tuple(
        {layer: tensor[number] for layer, tensor in rows.items() if layer in files.targets}
        for number, files in enumerate(adapters)
    )
    return GateFiles(folder, config, tuple(adapters), vectors)


def read_gate_config(path: Path) -> GateConfig:
    """Read the configuration of a gate.

    Raises:
        AdapterError: it can't be read, or a setting is wrong.
    """
    values = read_json(path)
    unknown = sorted(values.keys() - FIELDS)
    if unknown:
        raise AdapterError(f"{path} has the unknown field {unknown[0][:60]!r}; use {', '.join(sorted(FIELDS))}")
    names = values.get("adapters")
    if not isinstance(names, list) or not 1 <= len(names) <= MAX_ADAPTERS:
        raise AdapterError(f"{path}: 'adapters' must be a list of 1 to {MAX_ADAPTERS} names of folders")
    for name in names:
        if not isinstance(name, str) or not ADAPTER_NAME.fullmatch(name):
            raise AdapterError(
                f"{path}: 'adapters' has {str(name)[:80]!r}, which can't be the name of a folder; use up to 64 "
                "letters, digits and . _ -"
            )
        if names.count(name) > 1:
            raise AdapterError(f"{path}: 'adapters' has {name!r} twice; name it once")
    top_k, temperature = values.get("top_k"), values.get("temperature", 1.0)
    if type(top_k) is not int or not 1 <= top_k <= len(names):
        raise AdapterError(f"{path}: 'top_k' is {top_k!r}; it must be 1 to {len(names)}, the number of adapters")
    if type(temperature) not in {int, float} or not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
        raise AdapterError(
            f"{path}: 'temperature' is {temperature!r}; it must be a number from {MIN_TEMPERATURE:g} to "
            f"{MAX_TEMPERATURE:g}"
        )
    base = values.get(BASE_FIELD)
    if not isinstance(base, str | None):
        raise AdapterError(f"{path}: {BASE_FIELD!r} must be a fingerprint as GET /v1/experts/variants tells it")
    return GateConfig(tuple(names), top_k, float(temperature), base)


def _check_targets(folder: Path, files: AdapterFiles, targets: LoraTargets) -> None:
    """Refuse an adapter that can't be chosen by token."""
    if any(isinstance(target, ExpertTarget) for target in files.targets):
        raise AdapterError(f"{folder} adds to routed experts, but a gate chooses adapters of linear layers only")
    latent = next((target for target in files.targets if target in targets.latents), None)
    if latent is not None:
        raise AdapterError(
            f"{folder} adds to {latent}, which attention applies to the keys of all earlier tokens at once, so that no "
            "gate can choose it by token"
        )


def _read_rows(path: Path, adapters: Sequence[AdapterFiles], targets: LoraTargets) -> dict[str, torch.Tensor]:
    """Return the tensors of the gate, float32 ``(adapters, inputs)``, by the name of a linear layer."""
    wanted = {str(layer) for files in adapters for layer in files.targets}
    names, rows = TargetNames(targets), dict[str, torch.Tensor]()
    try:
        for name, source in read_index([path]).items():
            layer = names.linear(name)
            if layer not in wanted:
                raise AdapterError(f"{path}: {name} is no linear layer that the gate's adapters add to; remove it")
            if layer in rows:
                raise AdapterError(f"{path} has two tensors for {layer}; leave one")
            rows[layer] = _read_row(path, source, (len(adapters), targets.linears[layer][0]))
    except (ExpertStoreError, OSError) as error:
        raise AdapterError(str(error)) from error
    missing = sorted(wanted - rows.keys())
    if missing:
        raise AdapterError(f"{path} has no tensor {missing[0]}, which the gate's adapters add to; it is incomplete")
    return rows


def _read_row(path: Path, source: TensorSource, shape: tuple[int, int]) -> torch.Tensor:
    if source.dtype not in READABLE:
        dtype = str(source.dtype).removeprefix("torch.")
        raise AdapterError(f"{path}: {source.name} is of type {dtype}; store it as float32")
    if source.shape != shape:
        raise AdapterError(
            f"{path}: {source.name} has the shape {tuple(source.shape)}, but the gate has {shape[0]} adapters and the "
            f"layer {shape[1]} inputs"
        )
    tensor = read_tensor(source).float().contiguous()
    if not math.isfinite(float(tensor.abs().sum(dtype=torch.float64))):
        raise AdapterError(f"{path}: {source.name} has values that are not finite; the gate is damaged")
    return tensor
