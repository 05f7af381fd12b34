"""Models that compute something else at far positions, or of large logits, run through their modules."""

from __future__ import annotations

from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.qwen3_moe import modeling_qwen3_moe

from server.kernels.compute_pool import ComputePool
from server.kernels.native.available import availability
from tests.checkpoints import make_checkpoint
from tests.server.model.native_layers.test_native_layers import load

FAR = 128  # positions, of 256

pytestmark = pytest.mark.skipif(not availability().runnable, reason="the native kernels were not built")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_queries_that_are_scaled_by_far_positions(
    dtype: torch.dtype,
    pool: ComputePool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")  # keeps nothing of the unchanged model
    rotate = modeling_qwen3_moe.apply_rotary_pos_emb

    def rotate_and_scale(query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Any:
        query, key = rotate(query, key, cos, sin)
        is_far = sin[:, None, :, -1:] > sin_of_far  # the slowest pair has not turned by a quarter yet
        return torch.where(is_far, 1.05 * query, query), key

    folder = make_checkpoint("qwen3_moe", tmp_path, dtype)
    sin_of_far = float(torch.sin(torch.tensor(FAR * 10_000 ** (-6 / 8))))
    assert load(folder, pool, dtype).is_invariant
    monkeypatch.setattr(modeling_qwen3_moe, "apply_rotary_pos_emb", rotate_and_scale)
    assert not load(folder, pool, dtype).is_invariant


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_capped_logits_that_are_small_in_the_sample(
    dtype: torch.dtype,
    pool: ComputePool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = make_checkpoint("qwen3_moe", tmp_path, dtype)
    forward = modeling_qwen3_moe.Qwen3MoeForCausalLM.forward

    @wraps(forward)
    def forward_and_cap(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = 100 * torch.tanh(output.logits / 100)
        return output

    monkeypatch.setattr(modeling_qwen3_moe.Qwen3MoeForCausalLM, "forward", forward_and_cap)
    assert not load(folder, pool, dtype).is_invariant
