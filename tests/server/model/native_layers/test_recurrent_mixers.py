"""Recurrent mixers that run natively give the same bits in any chunks, at each level of instructions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from expert_store import ExpertStore
from server.kernels.compute_pool import ComputePool
from server.kernels.native.available import availability
from server.kernels.native.library import LEVELS, Kernels, best_level
from server.model.trunk.trunk import Trunk
from tests.checkpoints import make_checkpoint
from tests.server.model.native_layers.test_native_layers import BLOCK, TOLERANCE, Written, load
from tests.server.model.test_parity import generate

FAMILIES = (
    "bailing_hybrid",
    "granitemoehybrid",
    "inkling_text",
    "jamba",
    "kimi_linear",
    "lfm2_moe",
    "minimax",
    "nemotron_h",
    "qwen3_5_moe_text",
    "qwen3_next",
)
CHUNKS = (1, 2, 5)  # shorter and longer than what a convolution keeps

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not availability().runnable, reason="the native kernels were not built"),
]


def write_in_chunks(trunk: Trunk, chunk: int) -> Written:
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    try:
        return generate(trunk, store, chunk, 2, block_size=BLOCK)
    finally:
        store.close()


@pytest.mark.parametrize("name", FAMILIES)
def test_chunks_of_prompts_change_no_bit(name: str, tmp_path: Path, pool: ComputePool) -> None:
    trunk = load(make_checkpoint(name, tmp_path), pool)
    assert trunk.facts.program.is_native
    expected = write_in_chunks(trunk, 64)
    for chunk in CHUNKS:
        for (tokens, logits), (expected_tokens, wanted) in zip(write_in_chunks(trunk, chunk), expected, strict=True):
            assert tokens == expected_tokens
            assert torch.equal(logits, wanted)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", FAMILIES)
def test_each_level_gives_what_modules_give(name: str, level: str, tmp_path: Path) -> None:
    if best_level(level) != level:
        pytest.skip(f"this processor can't run {level}")
    folder, kernels = make_checkpoint(name, tmp_path), Kernels(1, level)
    trunk = load(folder, ComputePool(1, kernels))
    assert trunk.facts.program.is_native
    expected = write_in_chunks(load(folder, None), 64)
    for (tokens, logits), (expected_tokens, wanted) in zip(write_in_chunks(trunk, 5), expected, strict=True):
        assert tokens == expected_tokens
        assert (logits - wanted).abs().max() <= TOLERANCE * (wanted.max() - wanted.min())
    kernels.close()
