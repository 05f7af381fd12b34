"""An error about a tensor that contradicts the config names the config's keys, and no weight is read before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from expert_store import CheckpointError
from server.model import trunk_loader
from server.model.errors import ModelError
from server.model.trunk_loader import load_trunk
from tests.checkpoints import make_checkpoint


def no_weights(*_: object) -> dict[str, torch.Tensor]:
    raise AssertionError("weights are read")


@pytest.mark.parametrize(
    ("model_type", "changes", "named"),
    [
        ("qwen3_moe", {"vocab_size": 64}, ["vocab_size is 64"]),
        ("qwen3_moe", {"num_key_value_heads": 1}, ["num_key_value_heads is 1"]),
        ("qwen3_moe", {"num_hidden_layers": 5}, ["num_hidden_layers is 5"]),
        ("qwen3_moe", {"moe_intermediate_size": 25}, ["moe_intermediate_size is 25"]),
        ("qwen3_moe", {"num_experts": 4}, ["is 4)"]),
        ("qwen3_moe", {"num_experts": 16}, ["is 16)"]),
        ("gpt_oss", {"num_local_experts": 16}, ["num_local_experts is 16"]),
        ("gpt_oss", {"intermediate_size": 64}, ["intermediate_size is 64"]),
        ("deepseek_v3", {"kv_lora_rank": 24}, ["kv_lora_rank is 24"]),
    ],
    ids=str,
)
def test_the_keys_that_give_a_tensor_another_shape_are_named(
    model_type: str, changes: dict[str, Any], named: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trunk_loader, "_read_trunk", no_weights)
    file = make_checkpoint(model_type, tmp_path) / "config.json"
    values = json.loads(file.read_text())
    if "num_experts" in changes and "num_experts" not in values:
        changes = {"num_local_experts": changes["num_experts"]}
    file.write_text(json.dumps(values | changes))
    with pytest.raises((ModelError, CheckpointError)) as error:
        load_trunk(file.parent, torch.float32)
    assert "(config.json: " in str(error.value)
    assert [each for each in named if each not in str(error.value)] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 3}, "num_attention_heads is 3, not a multiple of num_key_value_heads, which is 2"),
        (
            {"per_layer_config": {"5": {"head_dim": 4}}},
            "num_hidden_layers is 3, but per_layer_config has a layer 5; download",
        ),
        ({"quantization_config": 5}, "quantization_config is 5, not an object"),
        ({"model_type": 7}, "model_type is 7, not a text"),
    ],
    ids=str,
)
def test_a_number_that_no_model_has_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = make_checkpoint("qwen3_moe", tmp_path) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ModelError, match=message):
        load_trunk(file.parent, torch.float32)


@pytest.mark.parametrize(("model_type", "layer"), [("qwen3_moe", 1), ("deepseek_v3", 2)])  # 1 predicts further tokens
def test_a_checkpoint_with_more_layers_than_its_config_names_the_key(
    model_type: str, layer: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trunk_loader, "_read_trunk", no_weights)
    file = make_checkpoint(model_type, tmp_path) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": 1}))
    message = f"^config.json: num_hidden_layers is 1, but the checkpoint has tensors of model.layers.{layer};"
    with pytest.raises(ModelError, match=message):
        load_trunk(file.parent, torch.float32)


def test_layers_that_predict_further_tokens_are_no_contradiction(tmp_path: Path) -> None:
    file = make_checkpoint("qwen3_moe", tmp_path) / "config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"num_hidden_layers": 2, "num_nextn_predict_layers": 1}))
    assert load_trunk(file.parent, torch.float32).facts.text_layers == (0, 1)


def test_a_width_of_heads_that_the_rotation_contradicts_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trunk_loader, "_read_trunk", no_weights)
    file = make_checkpoint("deepseek_v3", tmp_path) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"head_dim": 16}))
    with pytest.raises(ModelError, match="head_dim is 16, of which 16 are rotated, and qk_rope_head_dim is 8;"):
        load_trunk(file.parent, torch.float32)


def test_a_model_without_the_number_of_experts_of_a_token_names_its_key(tmp_path: Path) -> None:
    file = make_checkpoint("deepseek_v3", tmp_path) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_experts_per_tok": None}))
    with pytest.raises(ModelError, match="num_experts_per_tok is missing"):
        load_trunk(file.parent, torch.float32)
