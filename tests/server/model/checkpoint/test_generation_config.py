"""A checkpoint's generation config gives the sampling defaults and the end tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.checkpoint.generation_config import GenerationConfig, read_generation_config
from server.model.errors import ModelError


def write(folder: Path, values: Any) -> Path:
    (folder / "generation_config.json").write_text(values if isinstance(values, str) else json.dumps(values))
    return folder


def test_without_a_generation_config_there_are_no_defaults(tmp_path: Path) -> None:
    assert read_generation_config(FolderCheckpoint(tmp_path)) == GenerationConfig(frozenset(), {})


@pytest.mark.parametrize(("end", "expected"), [(5, {5}), ([5, 7], {5, 7}), (None, set())])
def test_end_tokens_are_one_or_several(tmp_path: Path, end: Any, expected: set[int]) -> None:
    assert read_generation_config(FolderCheckpoint(write(tmp_path, {"eos_token_id": end}))).eos_token_ids == expected


def test_known_settings_become_defaults(tmp_path: Path) -> None:
    values = {"temperature": 0.6, "top_k": 20, "top_p": None, "max_length": 9, "repetition_penalty": 1.05}
    expected = {"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.05}
    assert read_generation_config(FolderCheckpoint(write(tmp_path, values))).sampling == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": "hot"}, "temperature is 'hot', not a number from 0 to 2"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"eos_token_id": ["x"]}, "eos_token_id is"),
    ],
)
def test_an_invalid_value_is_named(tmp_path: Path, values: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_generation_config(FolderCheckpoint(write(tmp_path, values)))


def test_neutral_defaults_leave_the_end_tokens_of_the_model(tmp_path: Path) -> None:
    write(tmp_path, {"eos_token_id": 5, "temperature": 0.6})
    assert read_generation_config(FolderCheckpoint(tmp_path), "vllm") == GenerationConfig(frozenset({5}), {})


def test_another_folders_file_takes_the_place_of_the_models(tmp_path: Path) -> None:
    model, other = tmp_path / "model", tmp_path / "other"
    model.mkdir()
    other.mkdir()
    write(model, {"eos_token_id": 5, "temperature": 0.6, "max_new_tokens": 3})
    write(other, {"eos_token_id": 7, "top_k": 9, "max_new_tokens": 4})
    assert read_generation_config(FolderCheckpoint(model), str(other)) == GenerationConfig(
        frozenset({7}), {"top_k": 9, "max_new_tokens": 4}
    )


@pytest.mark.parametrize("source", ["auto", "vllm"])
def test_overrides_count_more_than_the_file(tmp_path: Path, source: str) -> None:
    write(tmp_path, {"temperature": 0.6})
    assert read_generation_config(FolderCheckpoint(tmp_path), source, {"temperature": 0.1}).sampling == {
        "temperature": 0.1
    }


def test_overrides_need_no_file(tmp_path: Path) -> None:
    assert read_generation_config(FolderCheckpoint(tmp_path), overrides={"top_k": 3}).sampling == {"top_k": 3}
