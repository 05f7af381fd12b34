"""Checkpoints whose samples prove little run natively, and factors near 1 are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from server.kernels.compute_pool import ComputePool
from server.kernels.native.available import availability
from tests.checkpoints import make_checkpoint, save_checkpoint
from tests.families import make_config
from tests.server.model.native_layers.test_native_layers import load, write

pytestmark = pytest.mark.skipif(not availability().runnable, reason="the native kernels were not built")


def largest_difference(folder: Path, pool: ComputePool, dtype: torch.dtype) -> float:
    """Return the largest difference of a logit from that of the modules, by the range of the logits."""
    native = load(folder, pool, dtype)
    assert native.is_invariant, "it runs through the modules"
    ((_, found),), ((_, wanted),) = (write(trunk, [[5, 17, 99, 3]]) for trunk in (native, load(folder, None, dtype)))
    return float((found[0] - wanted[0]).abs().max() / (wanted[0].max() - wanted[0].min()))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", ["qwen3_moe", "glm4_moe", "gpt_oss"])
def test_a_zero_embedding_whose_experts_are_tied_proves_nothing(
    model_type: str, dtype: torch.dtype, pool: ComputePool, tmp_path: Path
) -> None:
    folder = make_checkpoint(model_type, tmp_path, dtype)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight[:2] = 0
    model.save_pretrained(folder)
    assert load(folder, pool, dtype).is_invariant


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["phimoe", "nemo_speechlm"])
def test_jumps_of_weights_and_towers_in_float32_leave_a_model_in_bfloat16_native(
    model_type: str, pool: ComputePool, tmp_path: Path
) -> None:
    assert load(make_checkpoint(model_type, tmp_path, torch.bfloat16), pool, torch.bfloat16).is_invariant


@pytest.mark.slow
def test_a_factor_near_1_is_kept_in_bfloat16(pool: ComputePool, tmp_path: Path) -> None:
    plain, scaled = make_config("granitemoe"), make_config("granitemoe")
    plain.logits_scaling, scaled.logits_scaling = 1.0, 0.97
    error, scaled_error = (
        largest_difference(save_checkpoint(config, tmp_path / name, torch.bfloat16), pool, torch.bfloat16)
        for name, config in (("plain", plain), ("scaled", scaled))
    )
    assert scaled_error <= 1.2 * error


def test_a_factor_of_experts_near_1_is_not_taken_for_1_in_bfloat16(
    pool: ComputePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is within the tolerance of the trial of a layer."""
    forward = Qwen3MoeSparseMoeBlock.forward
    monkeypatch.setattr(Qwen3MoeSparseMoeBlock, "forward", lambda *args, **kwargs: 1.02 * forward(*args, **kwargs))
    trunk = load(make_checkpoint("qwen3_moe", tmp_path, torch.bfloat16), pool, torch.bfloat16)
    assert not trunk.is_invariant


@pytest.mark.slow
@pytest.mark.parametrize("method", ["greedy", "group_limited_greedy"])
def test_groups_are_chosen_by_the_method_of_the_router(method: str, pool: ComputePool, tmp_path: Path) -> None:
    config = make_config("deepseek_v2")
    config.n_routed_experts, config.n_group, config.topk_group, config.topk_method = 16, 4, 2, method
    assert largest_difference(save_checkpoint(config, tmp_path), pool, torch.float32) <= 1e-5


@pytest.mark.slow
def test_a_router_may_have_any_number_of_groups(pool: ComputePool, tmp_path: Path) -> None:
    """There were no more than 64 in memory."""
    config = make_config("glm4_moe")
    config.n_routed_experts, config.n_group, config.topk_group, config.num_experts_per_tok = 200, 100, 90, 4
    assert largest_difference(save_checkpoint(config, tmp_path), pool, torch.float32) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_that_are_all_equal_have_places(dtype: torch.dtype, pool: ComputePool, tmp_path: Path) -> None:
    """Their outputs are the same, as in a checkpoint that was not trained."""
    folder = save_checkpoint(make_config("gemma4_text"), tmp_path, dtype)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "layernorm" in name:
                value.fill_(1)
    model.save_pretrained(folder)
    assert load(folder, pool, dtype).is_invariant


@pytest.mark.slow
def test_experts_whose_sigmoids_are_all_1_are_chosen_by_their_logits(pool: ComputePool, tmp_path: Path) -> None:
    folder = make_checkpoint("llama4_text", tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("router.weight"):
                value.mul_(1000)
    model.save_pretrained(folder)
    assert largest_difference(folder, pool, torch.float32) <= 1e-5
