"""Checkpoints whose type transformers computes under another name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedConfig

from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.checkpoint.read_config import read_config
from server.model.errors import ModelError
from server.model.text.tokenizer import Tokenizer
from tests.byte_tokenizer import save_byte_tokenizer
from tests.checkpoints import save_checkpoint
from tests.families import make_config
from tests.server.model.quantised.test_published import logits

CODE = {"AutoConfig": "configuration_evil.Config", "AutoModelForCausalLM": "modeling_evil.Model"}


def renamed(folder: Path, model_type: str, **changes: Any) -> Path:
    """Give a checkpoint the type that its publisher chose, with code of its own."""
    for module in ("configuration_evil", "modeling_evil", "tokenization_evil"):
        (folder / f"{module}.py").write_text("raise SystemExit('code of a checkpoint was run')")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": model_type, "auto_map": CODE} | changes))
    return folder


BAILING = {
    "architectures": ["BailingMoeV2ForCausalLM"],
    "score_function": "sigmoid",
    "norm_topk_prob": True,
    "use_bias": False,
    "use_qk_norm": True,
    "partial_rotary_factor": 0.5,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "served_as", "published"),
    [
        ("kimi_k2", "deepseek_v3", {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1}),
        ("bailing_moe_v2", "sarvam_moe", BAILING),
        ("bailing_moe", "sarvam_moe", BAILING),
    ],
)
def test_the_same_tensors_give_the_same_logits_under_both_types(
    model_type: str, served_as: str, published: Mapping[str, Any], tmp_path: Path
) -> None:
    config = make_config(served_as)
    if "partial_rotary_factor" in published:
        config.rope_parameters["partial_rotary_factor"] = published["partial_rotary_factor"]
    folder = save_checkpoint(config, tmp_path)
    expected = logits(folder)
    path = folder / "config.json"
    values = json.loads(path.read_text())
    values["rope_theta"] = values.pop("rope_parameters")["rope_theta"]
    path.write_text(json.dumps(values))
    assert torch.equal(logits(renamed(folder, model_type, **published)), expected)


@pytest.mark.slow
def test_a_flat_ernie_config_gives_the_logits_of_one_with_parts(tmp_path: Path) -> None:
    folder = save_checkpoint(make_config("ernie4_5_vl_moe"), tmp_path)
    expected = logits(folder)
    values = json.loads((folder / "config.json").read_text())
    text, vision = values.pop("text_config"), values.pop("vision_config")
    rope = text.pop("rope_parameters")
    flat = text | {
        "architectures": values["architectures"],
        "tie_word_embeddings": values["tie_word_embeddings"],
        "im_patch_id": values["image_token_id"],
        "rope_theta": rope["rope_theta"],
        "freq_allocation": rope["mrope_section"][2],
        "moe_num_experts": [text["moe_num_experts"]] * 2,
        "moe_layer_interval": 1,
        "moe_layer_start_index": [1, 1],
        "moe_layer_end_index": [2, 2],
        "spatial_conv_size": vision["spatial_merge_size"],
        "temporal_conv_size": vision["temporal_merge_size"],
        "vision_config": vision | {"mlp_ratio": vision["intermediate_size"] / vision["hidden_size"]},
    }
    del flat["mlp_layer_types"]
    (folder / "config.json").write_text(json.dumps(flat))
    assert torch.equal(logits(renamed(folder, "ernie4_5_moe_vl")), expected)


STEP_LISTS = ("layer_types", "rope_theta", "partial_rotary_factors", "swiglu_limits", "swiglu_limits_shared")


def step_as_published(text: dict[str, Any]) -> dict[str, Any]:
    """Write the settings of a tiny Step-3.5 as those of the hub, which has lists for layers and one entry more."""
    kinds = text["layer_types"]
    of_sliding = {"attention_type": "sliding_attention", "num_attention_heads": 6, "num_attention_groups": 2}
    flat = {name: text[name] for name in ("head_dim", "hidden_size", "intermediate_size", "num_hidden_layers")}
    flat |= {name: text[name] for name in ("vocab_size", "moe_intermediate_size", "share_expert_dim", "sliding_window")}
    flat |= {name: text[name] for name in ("num_attention_heads", "max_position_embeddings", "pad_token_id")}
    published = flat | {
        "model_type": "step3p5",
        "architectures": ["Step3p5ForCausalLM"],
        "attention_other_setting": of_sliding,
        "num_attention_groups": text["num_key_value_heads"],
        "moe_num_experts": text["n_routed_experts"],
        "moe_top_k": text["num_experts_per_tok"],
        "moe_layers_enum": "1,2",
        "moe_router_activation": "sigmoid",
        "need_fp32_gate": True,
        "num_nextn_predict_layers": 1,
        "layer_types": kinds,
        "rope_theta": [5e6 if kind == "full_attention" else 1e4 for kind in kinds],
        "partial_rotary_factors": [0.5 if kind == "full_attention" else 1.0 for kind in kinds],
        "swiglu_limits": [0.0, 0.0, 0.5],
        "swiglu_limits_shared": [0.0, 0.0, 0.5],
        "use_rope_layers": [],
        "yarn_only_types": ["full_attention"],
    }
    return published | {name: [*published[name], published[name][0]] for name in STEP_LISTS}


def step_config(model_type: str) -> PreTrainedConfig:
    config = make_config(model_type)
    text = config.get_text_config()
    text.rope_parameters["full_attention"] |= {"rope_theta": 5e6, "partial_rotary_factor": 0.5}
    text.rope_parameters["sliding_attention"] |= {"partial_rotary_factor": 1.0}
    text.swiglu_limits = text.swiglu_limits_shared = [0.0, 0.0, 0.5]
    return config


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["step3p5", "step3p7"])
def test_a_published_step_config_gives_the_logits_of_the_one_that_transformers_saves(
    model_type: str, tmp_path: Path
) -> None:
    """Its sliding layers have more heads than the others (attention_other_setting)."""
    folder = save_checkpoint(step_config(model_type), tmp_path)
    expected = logits(folder)
    values = json.loads((folder / "config.json").read_text())
    if model_type == "step3p5":
        changes = step_as_published(values)
    else:
        changes = {**values, "text_config": step_as_published(values["text_config"])}
    (folder / "config.json").write_text(json.dumps(changes))
    assert torch.equal(logits(renamed(folder, model_type)), expected)


@pytest.mark.parametrize(
    ("changes", "setting"),
    [({"zero_centered": False}, "zero_centered False"), ({"use_rope_layers": [True, False, True]}, "use_rope_layers")],
)
def test_settings_that_a_class_of_transformers_ignores_are_refused(
    changes: dict[str, Any], setting: str, tmp_path: Path
) -> None:
    make_config("step3p5").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=rf"is a step3p5 with {setting}.*, which step3p5 of transformers does not"):
        read_config(renamed(tmp_path, "step3p5", **changes))


def test_settings_that_the_class_does_not_compute_are_named(tmp_path: Path) -> None:
    folder = renamed(save_checkpoint(make_config("deepseek_v3"), tmp_path), "kimi_k2", scoring_func="softmax")
    with pytest.raises(
        ModelError, match=r"kimi_k2 with scoring_func 'softmax', which deepseek_v3 of transformers does"
    ):
        read_config(folder)


@pytest.mark.parametrize(
    ("model_type", "remedy"),
    [
        ("minimax_text_01", "use MiniMaxAI/MiniMax-Text-01-hf"),
        ("custom", "use a checkpoint of a type that docs/models"),
    ],
)
def test_a_type_that_only_its_own_code_computes_is_refused(model_type: str, remedy: str, tmp_path: Path) -> None:
    folder = renamed(save_checkpoint(make_config("qwen3_moe"), tmp_path), model_type)
    with pytest.raises(ModelError, match=rf"has no {model_type}, and code that a checkpoint brings .* {remedy}"):
        read_config(folder)


@pytest.fixture
def kimi(tmp_path: Path) -> Path:
    folder = renamed(save_checkpoint(make_config("deepseek_v3"), tmp_path), "kimi_k2")
    save_byte_tokenizer(folder)
    path = folder / "tokenizer_config.json"
    code = {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_evil.Tokenizer", None]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | code))
    return folder


def test_a_tokenizer_with_code_is_read_from_its_json(kimi: Path) -> None:
    tokenizer = Tokenizer(FolderCheckpoint(kimi))
    assert tokenizer.encode("Hello") == list(b"Hello")


def test_a_tokenizer_that_only_its_own_code_reads_is_refused(kimi: Path) -> None:
    (kimi / "tokenizer.json").unlink()
    (kimi / "tiktoken.model").write_text("")
    with pytest.raises(ModelError, match=r"has no tokenizer\.json, and code that a checkpoint brings"):
        Tokenizer(FolderCheckpoint(kimi))


def test_an_encoder_whose_experts_only_its_own_code_computes_is_refused_by_name(tmp_path: Path) -> None:
    """The settings are those of nomic-ai/nomic-embed-text-v2-moe."""
    (tmp_path / "config.json").write_text("{}")
    folder = renamed(tmp_path, "nomic_bert", architectures=["NomicBertModel"], num_experts=8, moe_every_n_layers=2)
    with pytest.raises(
        ModelError, match=r"a nomic_bert with num_experts 8, .* has no experts, and code .* is never run"
    ):
        read_config(folder)
