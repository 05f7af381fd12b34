"""The program of a config is that of its model once the weights are there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from server.kernels.compute_pool import ComputePool
from server.kernels.native.available import availability
from server.kernels.native.library import Kernels
from server.model import program_trial
from server.model.checkpoint.read_config import read_config
from server.model.program import NO_KERNELS, Target
from server.model.program_trial import find_program
from server.model.trunk import Trunk
from server.model.trunk_loader import load_trunk
from tests.checkpoints import make_checkpoint, save_checkpoint
from tests.families import make_config

needs_kernels = pytest.mark.skipif(not availability().runnable, reason="the native kernels were not built")


@pytest.fixture
def kernels() -> Iterator[Kernels]:
    kernels = Kernels(1)
    yield kernels
    kernels.close()


@pytest.mark.slow
@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "name", ["qwen3_moe", "gpt_oss", "lfm2_moe", "qwen3_next", "deepseek_v3", "gemma4", "qwen4_exp"]
)
def test_a_config_shows_what_runs_where(name: str, dtype: torch.dtype, tmp_path: Path, kernels: Kernels) -> None:
    folder = make_checkpoint(name, tmp_path)
    trunk = load_trunk(folder, dtype, pool=ComputePool(1, kernels))
    assert find_program(read_config(folder), dtype, kernels, trunk.catalog) == trunk.facts.program


@pytest.mark.slow
@needs_kernels
def test_each_kind_of_layer_is_tried_once(tmp_path: Path, kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config("lfm2_moe")
    config.layer_types = ["conv", "full_attention"] * 6
    config.num_hidden_layers = len(config.layer_types)
    folder = save_checkpoint(config, tmp_path)
    catalog = load_trunk(folder, torch.float32).catalog
    sizes, run = [], program_trial.Trunk

    def count(model: Any, *arguments: Any, **options: Any) -> Trunk:
        sizes.append(len(model.model.layers))
        return run(model, *arguments, **options)

    monkeypatch.setattr(program_trial, "Trunk", count)
    program = find_program(read_config(folder), torch.float32, kernels, catalog)
    assert [block.name for block in program.blocks] == ["Lfm2MoeShortConv", "attention"] * 6
    assert sizes == [4]  # two with an MLP, and two with experts


def test_without_kernels_modules_run_everything(tmp_path: Path) -> None:
    folder = make_checkpoint("qwen3_moe", tmp_path)
    program = find_program(read_config(folder), torch.float32, None, load_trunk(folder, torch.float32).catalog)
    assert ({block.mixer for block in program.blocks}, program.reason) == ({Target.MODULES}, NO_KERNELS)
