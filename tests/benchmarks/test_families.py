"""Checkpoints of the families that ``benchmarks.compare`` measures, and the table of their results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from benchmarks.comparison.family_table import family_lines
from benchmarks.families import FAMILIES, VOCABULARY
from benchmarks.family_checkpoints import family_config, make_tokenizer, published_config
from tests.benchmarks.test_report import entry, result


@pytest.mark.parametrize("name", FAMILIES)
def test_published_config_is_read_as_the_config_it_was_made_of(name: str, tmp_path: Path) -> None:
    config = family_config(FAMILIES[name])
    (tmp_path / "config.json").write_text(json.dumps(published_config(FAMILIES[name], config)))
    read = AutoConfig.from_pretrained(tmp_path)
    assert _layers_and_sizes(read) == _layers_and_sizes(config)


def _layers_and_sizes(config: Any) -> dict[str, Any]:
    # Derived fields, and those that transformers keeps under other names.
    given = {"_name_or_path", "global_head_dim", "num_global_key_value_heads", "num_hidden_layers"}
    return {name: value for name, value in config.to_dict().items() if name not in given}


def test_tokenizer_has_complete_text_for_nearly_every_token() -> None:
    tokenizer = make_tokenizer()
    assert len(tokenizer) == VOCABULARY
    assert tokenizer.decode([300, VOCABULARY - 1]).isascii()
    assert tokenizer.encode("abc") == tokenizer.encode(tokenizer.decode(tokenizer.encode("abc")))


@pytest.mark.parametrize(
    ("words", "formats"), [([], ["bf16"]), (["decode"], ["bf16"]), (["int4", "int8"], ["int8", "int4"])]
)
def test_formats_are_the_checkpoints_unless_chosen(words: list[str], formats: list[str]) -> None:
    assert FAMILIES["deepseek_v3"].compared_formats(words) == formats
    assert FAMILIES["gpt_oss_mxfp4"].compared_formats(words) == ["mxfp4"]


def test_table_shows_both_engines_and_the_ratio_of_their_medians() -> None:
    first = result(
        entry("greenroom", [50, 60, 90]),
        entry("llama.cpp", [30, 40, 50]),
        entry("greenroom", [1], kind="prompt"),
        entry("llama.cpp", [1], kind="prompt"),
    )
    first["entries"][2]["samples"][0]["first_token_seconds"] = 0.5
    alone = result(entry("greenroom", [20]))
    lines = list(family_lines([first | {"model": "a"}, alone | {"model": "b"}]))
    assert lines[0] == "| Family | 1 stream | first token of 64 |"
    assert lines[2:] == ["| a, bf16 | 60.0 / 40.0 (1.50) | 0.50 / 1.00 (2.00) |", "| b, bf16 | 20.0 / - | - |"]


def test_table_shows_the_share_of_the_bandwidth_after_long_contexts() -> None:
    long = result(entry("greenroom", [60], prompt_tokens=12_000), entry("llama.cpp", [30], prompt_tokens=12_000))
    long["bandwidth"]["memory"] = [60_000]
    lines = list(family_lines([long | {"model": "a"}]))
    assert lines[2] == "| a, bf16 | 60.0 / 30.0 (2.00), 50% |"
