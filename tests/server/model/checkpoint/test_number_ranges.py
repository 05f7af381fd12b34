"""Numbers of a config that are those of no model are refused by name before anything is allocated."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import CONFIG_MAPPING

from server.model.checkpoint.number_ranges import number_out_of_range
from server.model.checkpoint.read_config import read_config
from server.model.errors import ModelError
from tests.checkpoints import make_checkpoint
from tests.families import FAMILIES, make_config


@pytest.mark.parametrize(
    ("values", "phrase"),
    [
        ({"hidden_size": 0}, "hidden_size is 0, not a whole number from 1 to 1048576"),
        ({"num_attention_heads": 2.5}, "num_attention_heads is 2.5, not a whole number from 1 to 1048576"),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps is nan, not a number from 0 to 1"),
        ({"rope_theta": math.inf}, "rope_theta is inf, not a number above 1, up to 1e+15"),
        ({"rope_theta": False}, "rope_theta is false, not a number above 1, up to 1e+15"),
        ({"rope_theta": "1e6"}, "rope_theta is the text '1e6', not a number above 1, up to 1e+15"),
        ({"vocab_size": 1 << 200}, f"vocab_size is {str(1 << 200)[:40]}..., not a whole number from 1 to 268435456"),
        ({"text_config": {"rope_parameters": {"factor": -1.0}}}, "text_config.rope_parameters.factor is -1, not a "),
        (
            {"per_layer_config": {"1": {"mamba_d_state": 1 << 31}}},
            "per_layer_config.1.mamba_d_state is 2147483648, not",
        ),
        ({"layer_rope_theta": [1e4, -1.0]}, "layer_rope_theta[1] is -1, not a number from 0 to 1e+15"),
        ({"rope.freq_base": 0.0}, "rope.freq_base is 0, not a number above 1, up to 1e+15"),
        ({"attention.head_count_kv": np.array([2, 1 << 31])}, "attention.head_count_kv[1] is 2147483648, not a"),
        ({"attention.scale": 1e308}, "attention.scale is 1e+308, not a number from 0 to 10000"),
        ({"another_whole_setting": 1 << 30}, "another_whole_setting is 1073741824, not a number from -16777216 to"),
        ({"another_setting": math.nan}, "another_setting is nan, not a number from -1e+12 to 1e+12"),
    ],
)
def test_a_number_out_of_its_range_is_named_with_its_value_and_range(values: dict[str, Any], phrase: str) -> None:
    assert str(number_out_of_range(values)).startswith(phrase)


@pytest.mark.parametrize(
    "values",
    [
        {"sliding_window": None, "num_experts": None},
        {"time_step_limit": [0.0, math.inf]},
        {"pad_token_id": -1, "vision_feature_layer": -2},
        {"tie_word_embeddings": True, "use_sliding_window": False, "mamba_conv_bias": True},
        {"id2label": {0: "no"}, "label2id": {"no": 1 << 60}},
        {"quantization_config": {"group_size": -1}},
    ],
    ids=str,
)
def test_what_configs_have_besides_is_let_through(values: dict[str, Any]) -> None:
    assert number_out_of_range(values) is None


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_sizes_of_a_family_are_in_range(model_type: str) -> None:
    assert number_out_of_range(make_config(model_type).to_dict()) is None
    assert number_out_of_range(CONFIG_MAPPING[model_type]().to_dict()) is None


def changed(folder: Path, **values: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


@pytest.mark.parametrize(
    ("model_type", "values"),
    [
        ("gpt_oss", {"sliding_window": 0}),
        ("gpt_oss", {"sliding_window": -1}),
        ("mixtral", {"sliding_window": 0}),
        ("llama4_text", {"attention_chunk_size": 0}),
    ],
)
def test_a_window_without_the_own_token_is_refused(tmp_path: Path, model_type: str, values: dict[str, Any]) -> None:
    folder = changed(make_checkpoint(model_type, tmp_path / "tiny"), **values)
    [(name, value)] = values.items()
    with pytest.raises(ModelError, match=rf"config\.json of tiny can't be used: {name} is {value}, not 1 or more"):
        read_config(folder)


def test_a_window_of_no_token_that_no_layer_has_is_read(tmp_path: Path) -> None:
    folder = make_checkpoint("qwen2_moe", tmp_path / "tiny")
    changed(folder, use_sliding_window=False, layer_types=["full_attention"] * 3, sliding_window=0)
    assert read_config(folder).sliding_window == 0
