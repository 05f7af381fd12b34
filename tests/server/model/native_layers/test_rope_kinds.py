"""Rotations of queries and keys are recognised where the attention of the sample does not depend on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from server.kernels.compute_pool import ComputePool
from server.kernels.native.available import availability
from server.model.modules.probe_run import PROBE_TOKENS
from tests.checkpoints import make_checkpoint
from tests.server.model.recognition.test_recognise import largest_difference

pytestmark = pytest.mark.skipif(not availability().runnable, reason="the native kernels were not built")


def make_queries_small_in_samples(folder: Path) -> None:
    """Let the first number of hidden states alone make queries large, which is zero for the tokens of a sample."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        embedding[:, 0] = 3
        embedding[:: len(embedding) // PROBE_TOKENS, 0] = 0
        for name, weight in model.named_parameters():
            if "q_proj" in name:
                weight[:, 1:] *= 1e-9
            if "o_proj" in name or "down_proj" in name:
                weight[..., 0, :] = 0
    model.save_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["mixtral", "ernie4_5_moe"])
def test_a_sample_with_uniform_attention_shows_how_keys_are_rotated(
    model_type: str,
    pool: ComputePool,
    tmp_path: Path,
) -> None:
    folder = make_checkpoint(model_type, tmp_path)
    make_queries_small_in_samples(folder)
    assert largest_difference(folder, pool, torch.float32) <= 1e-5


def test_zero_keys_do_not_hide_how_they_are_rotated(pool: ComputePool, tmp_path: Path) -> None:
    folder = make_checkpoint("qwen3_moe", tmp_path)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight.zero_()
    model.save_pretrained(folder)
    assert largest_difference(folder, pool, torch.float32) <= 1e-5
