"""The program of a config is that of its model once the weights are there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from server.kernels.compute_pool import ComputePool
from server.kernels.native.available import availability
from server.kernels.native.library import Kernels
from server.model.checkpoint.read_config import read_config
from server.model.from_config.program import program_of_config
from server.model.program import NO_KERNELS, Target
from server.model.trunk_loader import load_trunk
from tests.checkpoints import make_checkpoint

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
    assert program_of_config(read_config(folder), dtype, kernels, trunk.catalog) == trunk.facts.program


def test_without_kernels_modules_run_everything(tmp_path: Path) -> None:
    folder = make_checkpoint("qwen3_moe", tmp_path)
    program = program_of_config(read_config(folder), torch.float32, None, load_trunk(folder, torch.float32).catalog)
    assert ({block.mixer for block in program.layers}, program.reason) == ({Target.MODULES}, NO_KERNELS)
