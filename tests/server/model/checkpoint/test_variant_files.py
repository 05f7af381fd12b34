"""Folders that are no variant of a model are refused by the name of what is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from expert_store import CheckpointError
from server.model.opening.variant_files import BaseModel
from server.model.trunk_loader import load_trunk
from tests.checkpoints import make_checkpoint
from tests.server.model.variants import Tensors, base_of, read, read_tensors, save_changed, save_variant

GATE = "model.layers.0.mlp.gate.weight"
UP = "model.layers.1.mlp.experts.3.up_proj.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("qwen3_moe", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def base(folder: Path) -> BaseModel:
    return base_of(folder, load_trunk(folder, torch.float32))


@pytest.fixture(scope="module")
def tensors(folder: Path) -> Tensors:
    return read_tensors(folder)


Change = Callable[[Tensors], Tensors]


def renamed(tensors: Tensors, expert: int) -> Tensors:
    """Return the tensors of expert 3 of layer 1 as those of another."""
    start = "model.layers.1.mlp.experts."
    return {
        name.replace(f"{start}3.", f"{start}{expert}."): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{start}3.")
    }


REFUSED: dict[str, tuple[Change, dict[str, str] | None, str]] = {
    "a tensor of the trunk": (
        lambda all_of: {UP: all_of[UP], "model.norm.weight": all_of["model.norm.weight"]},
        None,
        "model.norm.weight is no tensor of an expert or a router of this model; 1 of 2 tensors applied",
    ),
    "a name that the model does not have": (
        lambda all_of: {"model.layers.7.mlp.experts.3.up_proj.weight": all_of[UP]},
        None,
        "0 of 1 tensors applied",
    ),
    "a matrix of another shape": (
        lambda all_of: {UP: all_of[UP][:, :-1].contiguous()},
        None,
        "up_proj",
    ),
    "a router of another shape": (
        lambda all_of: {GATE: all_of[GATE][:, :-1].contiguous()},
        None,
        re.escape(f"{GATE} has shape [8, 31]; with 8 experts it needs [8, 32]"),
    ),
    "not a number": (lambda all_of: {UP: torch.full_like(all_of[UP], torch.nan)}, None, f"{UP} holds NaN or infinity"),
    "another base": (
        lambda all_of: {UP: all_of[UP]},
        {"greenroom_base": "0123"},
        "was made for another base model: its greenroom_base is 0123",
    ),
    "more experts without a router": (
        lambda all_of: renamed(all_of, 8),
        None,
        re.escape("layer 1 gets more experts: give model.layers.1.mlp.gate.weight with 9 rows"),
    ),
    "an expert whose number leaves a gap": (
        lambda all_of: renamed(all_of, 9),
        None,
        "layer 1 gets expert 9, but not those before it",
    ),
    "an added expert without all tensors": (
        lambda all_of: {UP.replace("experts.3.", "experts.8."): all_of[UP]},
        None,
        "gate_up_proj needs .* for each expert, but has only .*experts.8.up_proj.weight",
    ),
    "too few experts left": (
        lambda _: {},
        {"greenroom_removed_experts": "[0, 1, 2, 3, 4, 5, 6]"},
        "layer 0 keeps 1 experts, but a token chooses 2",
    ),
    "the removal of no expert of the model": (
        lambda _: {},
        {"greenroom_removed_experts": '{"1": [8]}'},
        "greenroom_removed_experts names expert 8 of layer 1, which this model does not have",
    ),
    "a malformed removal": (lambda _: {}, {"greenroom_removed_experts": "{"}, "give a JSON list of experts"),
    "nothing": (lambda _: {}, None, "holds no tensor and removes no expert"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_variant_is_refused_with(case: str, base: BaseModel, tensors: Tensors, tmp_path: Path) -> None:
    change, metadata, message = REFUSED[case]
    with pytest.raises(CheckpointError, match=message) as raised:
        read(save_variant(tmp_path / "law", change(tensors), metadata), base)
    assert "\n" not in str(raised.value)


def test_a_variant_for_this_base_is_taken(base: BaseModel, tensors: Tensors, tmp_path: Path) -> None:
    files = read(save_variant(tmp_path / "law", {UP: tensors[UP]}, {"greenroom_base": base.fingerprint}), base)
    assert list(files.recipes) == [(1, 3)]
    assert (files.num_tensors, files.nbytes) == (1, tensors[UP].nbytes)


def test_a_base_with_other_routers_has_another_fingerprint(
    folder: Path, base: BaseModel, tensors: Tensors, tmp_path: Path
) -> None:
    changed = save_changed(tmp_path / "changed", folder, {GATE: tensors[GATE] * 2})
    assert base_of(changed, load_trunk(changed, torch.float32)).fingerprint != base.fingerprint


def test_a_pickled_variant_is_not_opened(base: BaseModel, tmp_path: Path) -> None:
    torch.save({}, tmp_path / "model.bin")
    with pytest.raises(CheckpointError, match="pickled checkpoints"):
        read(tmp_path, base)


def test_a_router_of_groups_keeps_its_number_of_experts(tmp_path: Path) -> None:
    folder = make_checkpoint("deepseek_v3", tmp_path / "base")
    variant = save_variant(tmp_path / "fewer", {}, {"greenroom_removed_experts": "[1]"})
    with pytest.raises(CheckpointError, match="can't have 7 instead of 8 experts: its router chooses among num_group"):
        read(variant, base_of(folder, load_trunk(folder, torch.float32)))
