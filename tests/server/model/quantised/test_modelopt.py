"""Matrices of NVIDIA's Model Optimizer have the weights that its formats define, or are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from expert_store import CheckpointError, find_shards, read_index
from server.model.checkpoint.read_config import read_config
from server.model.errors import ModelError
from server.model.quantised.matrix import StoredTensor, group_by_matrix
from server.model.quantised.modelopt import ModelOpt, algorithms
from tests.families import make_config
from tests.modelopt import mixed, nvfp4, quantise_fp8
from tests.quantise import Tensors

LINEAR, FUSED = "layers.0.mlp.up_proj.weight", "layers.0.mlp.experts.gate_up_proj"
SHAPES = {"matrix": (LINEAR, (48, 32)), "all experts": (LINEAR, (3, 48, 32)), "fused experts": (FUSED, (3, 48, 32))}


def saved(folder: Path, tensors: Tensors) -> dict[str, Any]:
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
    return dict(group_by_matrix(ModelOpt("NVFP4"), read_index(find_shards(folder))))


@pytest.fixture
def weight() -> Callable[..., torch.Tensor]:
    make = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=make)


@pytest.mark.parametrize("kind", SHAPES)
def test_nvfp4_has_the_numbers_of_its_definition(
    kind: str, weight: Callable[..., torch.Tensor], tmp_path: Path
) -> None:
    name, shape = SHAPES[kind]
    tensors, wanted = nvfp4().quantise(name, weight(*shape))
    found = saved(tmp_path, tensors)
    assert list(found) == [name]
    torch.testing.assert_close(found[name].dequantise(), wanted, rtol=3e-7, atol=0)


def test_fused_experts_may_have_their_inputs_before_their_outputs(
    weight: Callable[..., torch.Tensor], tmp_path: Path
) -> None:
    tensors, wanted = nvfp4(is_transposed=True).quantise(FUSED, weight(3, 32, 48))
    assert tensors[FUSED].shape == (3, 16, 48)
    torch.testing.assert_close(saved(tmp_path, tensors)[FUSED].dequantise(), wanted.mT, rtol=3e-7, atol=0)


def test_a_matrix_of_zeros_has_a_factor_of_zero(tmp_path: Path) -> None:
    """Model Optimizer divides the largest number of the matrix."""
    scale = torch.ones(2, 1).to(torch.float8_e4m3fn)
    factor = torch.zeros(())
    tensors = {LINEAR: torch.zeros(2, 8, dtype=torch.uint8), "layers.0.mlp.up_proj.weight_scale": scale}
    found = saved(tmp_path, tensors | {"layers.0.mlp.up_proj.weight_scale_2": factor})
    assert torch.equal(found[LINEAR].dequantise(), torch.zeros(2, 16))


def test_scales_of_blocks_may_have_dimensions_of_one(weight: Callable[..., torch.Tensor], tmp_path: Path) -> None:
    tensors, wanted = quantise_fp8(LINEAR, weight(48, 32))
    tensors["layers.0.mlp.up_proj.weight_scale"] = tensors["layers.0.mlp.up_proj.weight_scale"].view(1, 1, 1, 1)
    assert torch.equal(saved(tmp_path, tensors)[LINEAR].dequantise(), wanted)


def test_mxfp4_has_exponents_for_scales(tmp_path: Path) -> None:
    codes, exponents = torch.full((2, 16), 0x72, dtype=torch.uint8), torch.tensor([[126], [129]], dtype=torch.uint8)
    found = saved(tmp_path, {LINEAR: codes, "layers.0.mlp.up_proj.weight_scale": exponents})[LINEAR]
    assert isinstance(found, StoredTensor)
    assert found.dequantise()[:, :2].tolist() == [[0.5, 3.0], [4.0, 24.0]]


@pytest.mark.parametrize("factor", ["pre_quant_scale", "svdquant_lora_a"])
def test_what_changes_the_inputs_of_a_layer_is_refused(
    factor: str, weight: Callable[..., torch.Tensor], tmp_path: Path
) -> None:
    tensors, _ = nvfp4().quantise(LINEAR, weight(48, 32))
    with pytest.raises(CheckpointError, match=rf"{LINEAR} is quantised with layers.0.mlp.up_proj.{factor}, which"):
        saved(tmp_path, tensors | {f"layers.0.mlp.up_proj.{factor}": torch.ones(32)})


def test_integers_are_refused(weight: Callable[..., torch.Tensor], tmp_path: Path) -> None:
    tensors, _ = nvfp4().quantise(LINEAR, weight(48, 32))
    scale = {"layers.0.mlp.up_proj.weight_scale": torch.ones(48, 2, dtype=torch.bfloat16)}
    with pytest.raises(CheckpointError, match=r"up_proj\.weight_scale is bfloat16; .*up_proj\.weight is uint8, and"):
        saved(tmp_path, tensors | scale)


@pytest.mark.parametrize("part", ["weight_scale", "weight_scale_2"])
def test_a_missing_part_is_named(part: str, weight: Callable[..., torch.Tensor], tmp_path: Path) -> None:
    tensors, _ = nvfp4().quantise(LINEAR, weight(48, 32))
    del tensors[f"layers.0.mlp.up_proj.{part}"]
    with pytest.raises(CheckpointError, match=rf"is quantised, but layers\.0\.mlp\.up_proj\.{part} is missing"):
        saved(tmp_path, tensors)


def test_the_algorithm_of_experts_comes_first() -> None:
    assert algorithms(mixed().config) == ["W4A16_NVFP4", "FP8"]


def test_groups_tell_the_algorithms_where_layers_are_not_listed() -> None:
    assert algorithms(mixed(names_layers=False).config) == ["NVFP4", "FP8"]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"quant_algo": "NVFP4_AWQ"}, "NVFP4_AWQ"),
        ({"quant_algo": "W4A8_AWQ"}, "W4A8_AWQ"),
        ({"quant_algo": "MIXED_PRECISION"}, "MIXED_PRECISION"),
        ({"quant_algo": "MIXED_PRECISION", "quantized_layers": {"a.experts": {"quant_algo": "W8A16"}}}, "W8A16"),
        ({}, "None"),
    ],
)
def test_an_algorithm_that_is_not_served_is_named(given: dict[str, Any], named: str, tmp_path: Path) -> None:
    config = make_config("qwen3_moe")
    config.quantization_config = {"quant_method": "modelopt", **given}
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"is quantised by modelopt as {named}, which is not supported; use"):
        read_config(tmp_path)
