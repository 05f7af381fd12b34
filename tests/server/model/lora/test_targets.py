"""The matrices that adapters can add to, by the names that PEFT has for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from server.kernels.compute_pool import ComputePool
from server.model.lora.targets import LoraTargets
from server.model.trunk.adapter_targets import lora_targets
from server.model.trunk_loader import load_trunk
from tests.checkpoints import make_checkpoint


def targets_of(name: str, folder: Path, pool: ComputePool | None = None) -> LoraTargets:
    return lora_targets(load_trunk(make_checkpoint(name, folder), torch.float32, pool=pool))


def test_experts_have_the_sizes_of_one_expert(tmp_path: Path) -> None:
    targets = targets_of("gpt_oss", tmp_path)  # whose matrices are (inputs, outputs)
    assert targets.expert_modules["model.layers.1.mlp.experts"] == 1
    assert targets.num_experts[1] == 8
    assert targets.experts[1, "gate_up_proj"] == (32, 64)
    assert targets.experts[1, "down_proj"] == (32, 32)


def test_linear_layers_have_inputs_and_outputs(tmp_path: Path) -> None:
    linears = targets_of("deepseek_v3", tmp_path).linears
    assert linears["model.layers.2.self_attn.kv_b_proj"] == (16, 80)
    assert linears["model.layers.0.mlp.down_proj"] == (48, 32)
    assert linears["lm_head"] == (32, 128)


@pytest.mark.slow
def test_native_layers_and_modules_take_adapters_of_routers(tmp_path: Path, pool: ComputePool) -> None:
    for one in (pool, None):
        assert targets_of("qwen3_moe", tmp_path / str(one), one).linears["model.layers.0.mlp.gate"] == (32, 8)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deepseek_v3", "qwen3_next", "glm4_moe", "qwen3_5_moe"])
def test_modules_take_adapters_of_routers_that_return_no_product(name: str, tmp_path: Path) -> None:
    targets = targets_of(name, tmp_path)
    assert any(each.endswith("layers.2.mlp.gate") for each in targets.linears)


@pytest.mark.slow
def test_native_layers_and_modules_take_adapters_of_the_same_linear_layers(tmp_path: Path, pool: ComputePool) -> None:
    native, modules = (targets_of("qwen2_moe", tmp_path / str(one), one).linears for one in (pool, None))
    assert {name: native[name] for name in modules} == modules


def test_a_linear_layer_that_returns_more_than_a_product_is_refused(tmp_path: Path) -> None:
    targets = targets_of("llama4_text", tmp_path)
    name = next(name for name in targets.refused if name.endswith(".router"))
    assert targets.refused[name] == "the model does not call it with one row for each token"


@pytest.mark.slow
def test_native_layers_and_modules_refuse_adapters_of_outputs_in_groups(tmp_path: Path, pool: ComputePool) -> None:
    """PEFT can't add to them either: they return as many numbers for each group as there are outputs of the group."""
    for one in (pool, None):
        targets = targets_of("deepseek_v4", tmp_path / str(one), one)
        name = "model.layers.1.self_attn.o_a_proj"
        assert targets.refused[name] == "the model does not call it with one row for each token"


def test_towers_are_refused(tmp_path: Path) -> None:
    targets = targets_of("qwen3_vl_moe", tmp_path)
    assert targets.refused["model.visual.blocks.0.attn.qkv"] == "it is not part of the text model"
