"""Mixtures in their files: what becomes of the gate's tensors, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from server.model.adapters.errors import AdapterError
from server.model.lora.gate_files import GateFiles, read_gate
from server.model.lora.targets import LoraTargets
from tests.adapters import write_adapter
from tests.gates import write_gate, write_mixture

LAYERS = [f"model.layers.{layer}.self_attn.q_proj" for layer in range(2)]
TARGETS = LoraTargets(dict.fromkeys(LAYERS, (32, 32)), {}, {}, {}, {})
FINGERPRINT = "5f0c"


def read(folder: Path, root: Path | None = None, targets: LoraTargets = TARGETS) -> GateFiles:
    return read_gate(folder, targets, 1 << 20, lambda: FINGERPRINT, root)


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    return write_mixture(tmp_path / "mix", {"law": 1.0, "code": 2.0}, greenroom_base=FINGERPRINT)


def change(folder: Path, **values: Any) -> None:
    path = folder / "gate_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def save(folder: Path, **tensors: torch.Tensor) -> None:
    """Replace the gate's tensors; ``q0`` and ``q1`` stand for the layers."""
    names = {"q0": LAYERS[0], "q1": LAYERS[1]}
    save_file({names.get(name, name): each for name, each in tensors.items()}, folder / "gate_model.safetensors")


def test_each_adapter_has_the_rows_of_the_layers_that_it_adds_to(tmp_path: Path) -> None:
    write_adapter(tmp_path / "law", num_layers=2)
    write_adapter(tmp_path / "code", num_layers=1)
    rows = {name: torch.stack([torch.full((32,), 1.0 + index), torch.zeros(32)]) for index, name in enumerate(LAYERS)}
    files = read(write_gate(tmp_path, rows, adapters=["law", "code"], top_k=2, temperature=0.5))
    law, code = files.vectors
    assert {name: float(vector[0]) for name, vector in law.items()} == {LAYERS[0]: 1.0, LAYERS[1]: 2.0}
    assert {name: float(vector[0]) for name, vector in code.items()} == {LAYERS[0]: 0.0}
    assert (files.config.top_k, files.config.temperature, files.nbytes) == (2, 0.5, 3 * 32 * 4)


def test_tensors_in_half_precision_become_float32(mixture: Path) -> None:
    save(mixture, q0=torch.ones(2, 32, dtype=torch.bfloat16))
    assert read(mixture).vectors[0][LAYERS[0]].dtype == torch.float32


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"top_k": 0}, "'top_k' is 0; it must be 1 to 2, the number of adapters"),
        ({"top_k": 3}, "'top_k' is 3; it must be 1 to 2"),
        ({"top_k": True}, "'top_k' is True"),
        ({"temperature": 0}, "'temperature' is 0; it must be a number from 0.001 to 1000"),
        ({"temperature": float("nan")}, "'temperature' is nan"),
        ({"adapters": []}, "'adapters' must be a list of 1 to 64 names"),
        ({"adapters": "law"}, "'adapters' must be a list"),
        ({"adapters": ["law", "law"]}, "'adapters' has 'law' twice"),
        ({"adapters": ["law", "../law"]}, r"'\.\./law', which can't be the name of a folder"),
        ({"adapters": ["law", 7]}, "'7', which can't be the name of a folder"),
        ({"adapters": ["law", "music"]}, "has no folder 'music', which gate_config.json names"),
        ({"greenroom_base": "77aa"}, "trained for a model with the fingerprint 77aa, not for this one with 5f0c"),
        ({"greenroom_base": 7}, "'greenroom_base' must be a fingerprint"),
        ({"weights": 1}, "unknown field 'weights'; use adapters, greenroom_base, temperature, top_k"),
    ],
)
def test_wrong_settings_are_refused(mixture: Path, values: dict[str, Any], message: str) -> None:
    change(mixture, **values)
    with pytest.raises(AdapterError, match=message):
        read(mixture)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"q0": torch.ones(3, 32)}, r"has the shape \(3, 32\), but the gate has 2 adapters and the layer 32 inputs"),
        ({"q0": torch.ones(2, 31)}, r"has the shape \(2, 31\)"),
        ({"q0": torch.ones(64)}, r"has the shape \(64,\)"),
        ({"q0": torch.tensor([[1.0] * 32, [float("nan")] * 32])}, "values that are not finite; the gate is damaged"),
        ({"q0": torch.full((2, 32), float("inf"))}, "values that are not finite"),
        ({"q0": torch.ones(2, 32, dtype=torch.int32)}, "is of type int32; store it as float32"),
        ({"q0": torch.ones(2, 32), "q1": torch.ones(2, 32)}, "1.self_attn.q_proj is no linear layer that the gate's"),
        ({"q0": torch.ones(2, 32), "head": torch.ones(2, 32)}, "head is no linear layer"),
        ({}, "has no tensor model.layers.0.self_attn.q_proj, which the gate's adapters add to"),
    ],
)
def test_wrong_tensors_are_refused(mixture: Path, tensors: dict[str, torch.Tensor], message: str) -> None:
    save(mixture, **tensors)
    with pytest.raises(AdapterError, match=message):
        read(mixture)


def _truncate(folder: Path) -> None:
    path = folder / "gate_model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def _pickle(folder: Path) -> None:
    (folder / "gate_model.safetensors").unlink()
    (folder / "gate_model.bin").write_bytes(pickle.dumps({}))


def _no_weights(folder: Path) -> None:
    (folder / "gate_model.safetensors").unlink()


def _no_json(folder: Path) -> None:
    (folder / "gate_config.json").write_text("[")


def _pipe(folder: Path) -> None:
    (folder / "gate_model.safetensors").unlink()
    os.mkfifo(folder / "gate_model.safetensors")


def _damaged_adapter(folder: Path) -> None:
    write_adapter(folder / "code", float("nan"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, "gate_model.safetensors"),
        (_pickle, "has pickled weights alone"),
        (_no_weights, "has no gate_model.safetensors"),
        (_no_json, "gate_config.json can't be read"),
        (_pipe, "is not a regular file"),
        (_damaged_adapter, "code/adapter_model.safetensors: .* not finite"),
    ],
)
def test_damaged_files_are_refused(mixture: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(mixture)
    with pytest.raises(AdapterError, match=message):
        read(mixture)


@pytest.mark.parametrize("name", ["gate_config.json", "gate_model.safetensors", "code"])
def test_links_out_of_the_root_are_refused(mixture: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    shutil.move(mixture / name, outside)
    (mixture / name).symlink_to(outside)
    with pytest.raises(AdapterError, match="is a link out of"):
        read(mixture, mixture)


def test_an_adapter_of_absorbed_latents_is_refused(mixture: Path) -> None:
    targets = LoraTargets({LAYERS[0]: (32, 32)}, {}, {}, {}, {}, frozenset({LAYERS[0]}))
    with pytest.raises(AdapterError, match="no gate can choose it by token"):
        read(mixture, targets=targets)
