"""`greenroom family` prints what a model is, as source."""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from server.cli import family
from server.kernels.native.available import availability
from server.kernels.native.library import Kernels
from server.model.attention.rope import max_served_length
from server.model.checkpoint.read_config import read_config
from server.model.declarations.differences import differences
from server.model.model_building import build_model
from server.model.recognition.find_program import find_declaration
from tests.checkpoints import make_checkpoint, save_checkpoint
from tests.families import make_unusual_config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not availability().runnable, reason="the native kernels were not built"),
]


def printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert family.run(Namespace(model=str(folder))) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss", "longcat_flash", "gemma4_text"])
def test_the_source_declares_the_model(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_checkpoint(name, tmp_path)
    module: dict[str, Any] = {}
    exec(printed(folder, capsys), module)  # as Python would import the printed file
    model = build_model(read_config(folder), torch.float32)
    found = find_declaration(model, Kernels(1), max_served_length(model.config, None))
    assert [*differences(module["declare"](model.config), found)] == []


def test_the_source_is_formatted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = printed(make_checkpoint("deepseek_v3", tmp_path), capsys)
    command = [sys.executable, "-m", "ruff", "format", "--check", "--stdin-filename", "family.py", "-"]
    assert subprocess.run(command, input=source, text=True, check=False).returncode == 0


def test_a_model_that_the_kernels_do_not_run_is_refused_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert family.run(Namespace(model=str(save_checkpoint(make_unusual_config(), tmp_path)))) == 1
    assert "because its rotary positions depend on the length of a sequence" in capsys.readouterr().err
