"""Keys of GGUF headers are read as llama.cpp reads them, refused where they change the model, or named in the log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from server.model.checkpoint.gguf.gguf_file import GgufFile
from server.model.checkpoint.gguf.known_keys import check_keys
from server.model.errors import ModelError
from server.model.families.registry import gguf_architectures
from server.model.opening.gguf_checkpoint import GgufCheckpoint
from tests.gguf.models import FILES, MODELS, make_model
from tests.server.model.checkpoint.gguf.test_gguf_checkpoint import PROMPT, logits_of, rewrite


def config_of(folder: Path, name: str, **changes: Any) -> Any:
    """Return the config of a file whose architecture's metadata has other values."""
    architecture = GgufFile.open(FILES, f"{name}.gguf").architecture
    changes = {f"{architecture}.{key}": value for key, value in changes.items()}
    path = rewrite(folder / "tiny.gguf", name=name, changes=changes)
    return GgufCheckpoint(path.parent, path.name).read_config()


@pytest.mark.parametrize("name", MODELS)
def test_the_converter_writes_no_key_that_is_unknown(name: str) -> None:
    file = GgufFile.open(FILES, f"{name}.gguf")
    assert check_keys(file, gguf_architectures()[file.architecture].keys) == []


def test_the_older_key_of_linear_scaling_has_the_logits_of_transformers(tmp_path: Path) -> None:
    model = make_model("qwen3moe").float()
    rope = model.model.rotary_emb
    rope.inv_freq = rope.inv_freq / 4
    with torch.inference_mode():
        expected = model(torch.tensor([PROMPT])).logits[0, -1]
    path = rewrite(tmp_path / "tiny.gguf", changes={"qwen3moe.rope.scale_linear": 4.0})
    assert float((logits_of(path) - expected).abs().max()) < 1e-4 * float(expected.max() - expected.min())


@pytest.mark.parametrize(
    ("changes", "kind", "factor"),
    [
        ({"rope.scale_linear": 4.0}, "linear", 4.0),
        ({"rope.scaling.factor": 2.0, "rope.scale_linear": 4.0}, "linear", 2.0),
        ({"rope.scaling.factor": 0.5}, "linear", 0.5),
        ({"rope.scaling.factor": 0.0}, "default", None),
        ({"rope.scaling.type": "none", "rope.scale_linear": 4.0}, "default", None),
        (
            {"rope.scaling.type": "yarn", "rope.scale_linear": 4.0, "rope.scaling.original_context_length": 64},
            "yarn",
            4.0,
        ),
    ],
)
def test_the_scaling_of_rotary_positions_is_that_of_llama_cpp(
    tmp_path: Path, changes: dict[str, Any], kind: str, factor: float | None
) -> None:
    found = config_of(tmp_path, "qwen3moe", **changes).rope_parameters
    assert (found["rope_type"], found.get("factor")) == (kind, factor)


def test_unknown_keys_are_named_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    changes = {"qwen3moe.attention.of_tomorrow": 7, "tokenizer.ggml.of_tomorrow": True, "general.of_tomorrow": "x"}
    GgufCheckpoint(tmp_path, rewrite(tmp_path / "tiny.gguf", changes=changes).name).read_config()
    [text] = [record.getMessage() for record in caplog.records if "not read" in record.getMessage()]
    assert text == ("tiny.gguf has keys that are not read: tokenizer.ggml.of_tomorrow, qwen3moe.attention.of_tomorrow")


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("qwen3moe", "rope.dimension_count", 8),
        ("qwen3moe", "rope.scaling.attn_factor", 1.5),
        ("qwen3moe", "expert_used_count", [2, 1]),
        ("qwen3moe", "expert_group_count", 2),
        ("qwen3moe", "attention.causal", False),
        ("gpt-oss", "attention.sliding_window_pattern", 4),
        ("gpt-oss", "rope.freq_base_swa", 1e4),
        ("deepseek-v3", "attention.temperature_scale", 0.1),
        ("dots1", "expert_gating_func", 1),
        ("gemma4", "rope.scale_linear", 4.0),
        ("llama4", "attention.sliding_window", 0),
    ],
)
def test_a_value_that_the_architecture_is_not_computed_with_is_refused(
    tmp_path: Path, name: str, key: str, value: Any
) -> None:
    with pytest.raises(ModelError, match=rf"{key} of tiny\.gguf is .*, but Greenroom computes this architecture with"):
        config_of(tmp_path, name, **{key: value})


@pytest.mark.parametrize("name", ["granitemoe", "granitehybrid"])
def test_a_scale_of_0_stands_for_none(tmp_path: Path, name: str) -> None:
    keys = ("logit_scale", "residual_scale", "embedding_scale", "attention.scale")
    config = config_of(tmp_path, name, **dict.fromkeys(keys, 0.0))
    assert (config.logits_scaling, config.residual_multiplier, config.embedding_multiplier) == (1.0, 1.0, 1.0)
    assert config.attention_multiplier == pytest.approx((config.hidden_size // config.num_attention_heads) ** -0.5)


def test_recurrent_layers_are_those_that_the_header_names(tmp_path: Path) -> None:
    is_recurrent = [True, False, True, True]
    changes = {"attention.recurrent_layers": is_recurrent}
    kinds = config_of(tmp_path, "qwen3next", **changes).layer_types
    assert [kind == "linear_attention" for kind in kinds] == is_recurrent


def test_more_rotated_numbers_than_a_head_has_are_refused(tmp_path: Path) -> None:
    message = r"rope\.dimension_count of tiny\.gguf is 1048576, not a whole number from 0 to the 16 of a head"
    with pytest.raises(ModelError, match=message):
        config_of(tmp_path, "glm4moe", **{"rope.dimension_count": 1 << 20})
