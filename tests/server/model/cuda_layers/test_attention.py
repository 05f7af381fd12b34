"""Attention modules that prepare their heads in one launch give what they gave."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from expert_store import ExpertStore
from server.kernels.compute_pool import ComputePool
from server.kernels.triton import available
from server.kernels.triton.available import has_driver
from server.model.attention.kv_cache import KVCache
from server.model.blocks.cuda import CudaAttention
from server.model.blocks.grouped_attention.cuda import CudaGroupedAttention
from server.model.checkpoint.read_config import read_config
from server.model.from_config.program import program_of_config
from server.model.program import Target
from server.model.step import SequenceChunk
from server.model.trunk.trunk import Trunk
from server.model.trunk_loader import load_trunk
from tests.card import fast_interpreter
from tests.checkpoints import save_checkpoint
from tests.families import make_small_config

pytest.importorskip("triton")
pytestmark = pytest.mark.slow

DEVICE = torch.device("cuda" if has_driver() else "cpu")
FAMILIES = {
    "gpt_oss": "tables of one half, biases, sinks and windows",
    "glm4_moe": "a part of a head that is rotated",
    "ernie4_5_moe": "pairs",
    "gemma4_text": "norms of values, values that are keys, and tables by kind of layer",
    "deepseek_v3": "latents, and pairs that are stored as halves",
}
STEPS = (((0, 5), (0, 2)), ((5, 1), (2, 3)))  # cached and new tokens of two sequences


@pytest.fixture
def _kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Triton's kernels run, by its interpreter where there is no GPU."""
    if DEVICE.type == "cpu":
        fast_interpreter.install()
    monkeypatch.setattr(available, "missing", lambda _: None)


def load(family: str, folder: Path, *, with_triton: bool) -> Trunk:
    model = folder / "model"
    if not model.exists():
        save_checkpoint(make_small_config(family), model, torch.float32)
    trunk = load_trunk(model, torch.float32, DEVICE, pool=ComputePool(1, triton_device=DEVICE if with_triton else None))
    assert isinstance(trunk, Trunk)
    return trunk


def num_fused(trunk: Trunk) -> int:
    return sum(isinstance(module.forward, CudaAttention) for module in trunk._model.modules())


def logits(trunk: Trunk) -> torch.Tensor:
    """Return the logits of steps of two sequences, prompts and single tokens."""
    groups = trunk.facts.kv_groups
    cache = KVCache(groups, [8] * len(groups), 4, trunk.device)
    nbytes = trunk.catalog.total_bytes
    results = []
    store = ExpertStore(trunk.catalog, nbytes, device_bytes=0 if DEVICE.type == "cpu" else nbytes, device=DEVICE)
    try:
        for step in STEPS:
            chunks = [
                SequenceChunk([(7 * first + 3 * i + row) % 120 for i in range(new)], first, [tables] * len(groups))
                for row, ((first, new), tables) in enumerate(zip(step, ([3, 1, 2], [5, 4, 6]), strict=True))
            ]
            results.append(trunk.forward(chunks, cache, store).logits)
    finally:
        store.close()
    return torch.cat(results)


@pytest.mark.usefixtures("_kernels")
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_modules(family: str, tmp_path: Path) -> None:
    fused = load(family, tmp_path, with_triton=True)
    assert num_fused(fused) == fused._model.config.num_hidden_layers
    expected = logits(load(family, tmp_path, with_triton=False))
    assert float((logits(fused) - expected).abs().max()) < 1e-4 * float(expected.abs().max())


@pytest.mark.usefixtures("_kernels")
def test_norms_of_all_heads_together_stay_as_they_are(tmp_path: Path) -> None:
    assert num_fused(load("olmoe", tmp_path, with_triton=True)) == 0


@pytest.mark.usefixtures("_kernels")
def test_mixed_heads_stay_as_they_are(tmp_path: Path) -> None:
    assert num_fused(load("zaya", tmp_path, with_triton=True)) == 0


@pytest.mark.usefixtures("_kernels")
def test_queries_that_are_scaled_by_their_position_stay_as_they_are(tmp_path: Path) -> None:
    """Near positions have a scale of 1, so that no short prompt shows it."""
    assert num_fused(load("mistral4", tmp_path, with_triton=True)) == 0


@pytest.mark.usefixtures("_kernels")
def test_the_program_says_which_parts_the_kernels_run(tmp_path: Path) -> None:
    blocks = load("phimoe", tmp_path, with_triton=True).facts.program.layers
    assert {(block.mixer, block.feed_forward) for block in blocks} == {(Target.CUDA, Target.MODULES)}  # a sparse mixer


@pytest.mark.usefixtures("_kernels")
@pytest.mark.parametrize("family", ["qwen3_next", "longcat_flash", "gemma4_text", "nemotron_h"])
def test_a_config_shows_which_parts_the_kernels_run(family: str, tmp_path: Path) -> None:
    trunk, config = load(family, tmp_path, with_triton=True), read_config(tmp_path / "model")
    found = program_of_config(config, torch.float32, None, trunk.catalog, triton_device=DEVICE)
    assert found == trunk.facts.program


def test_modules_run_where_triton_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(available, "missing", lambda _: "there is no driver")
    assert num_fused(load("qwen3_moe", tmp_path, with_triton=True)) == 0


@pytest.mark.usefixtures("_kernels")
def test_a_module_whose_projection_changes_runs_as_it_is(tmp_path: Path) -> None:
    """Adapters add to projections by hooks."""
    trunk = load("qwen3_moe", tmp_path, with_triton=True)
    assert num_fused(trunk) == trunk._model.config.num_hidden_layers
    before = logits(trunk)
    attention = next(module for module in trunk._model.modules() if isinstance(module.forward, CudaGroupedAttention))
    attention.v_proj.register_forward_hook(lambda _module, _given, output: 2 * output)
    doubled = logits(trunk)
    plain = load("qwen3_moe", tmp_path, with_triton=False)
    layer = next(module for module in plain._model.modules() if type(module) is type(attention))
    layer.v_proj.register_forward_hook(lambda _module, _given, output: 2 * output)
    assert not torch.allclose(before, doubled, atol=1e-4)
    assert torch.allclose(doubled, logits(plain), atol=1e-4)
