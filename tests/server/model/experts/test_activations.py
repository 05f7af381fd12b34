"""Native experts have the logits of transformers in float32, whatever their activation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from expert_store import ExpertStore
from server.kernels.compute_pool import ComputePool
from server.kernels.native.available import availability
from server.kernels.native.library import Kernels
from server.model.attention.kv_cache import KVCache
from server.model.blocks.workspace import BLOCK
from server.model.step import SequenceChunk
from server.model.trunk_loader import load_trunk
from tests.checkpoints import load_transformers_model, save_checkpoint
from tests.families import make_config

TOKENS = [5, 17, 99, 3, 42, 8, 64, 23, 11, 90]
TOLERANCE = 1e-5  # of the range of the logits

pytestmark = pytest.mark.skipif(not availability().runnable, reason="the native kernels were not built")


def native_logits(folder: Path) -> torch.Tensor:
    kernels = Kernels(1)
    trunk = load_trunk(folder, torch.float32, pool=ComputePool(1, kernels))
    groups, store = trunk.facts.kv_groups, ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    chunk = SequenceChunk(TOKENS, 0, [[0]] * len(groups), len(TOKENS), slot=0, num_prompt=len(TOKENS))
    try:
        cache = KVCache(groups, [1] * len(groups), BLOCK)
        return trunk.forward([chunk], cache, store, None, trunk.new_states(1)).logits
    finally:
        store.close()
        kernels.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "field", "activation"),
    [
        ("gemma4_text", "hidden_activation", "gelu_pytorch_tanh"),
        ("gemma4_text", "hidden_activation", "gelu"),
        ("qwen3_moe", "hidden_act", "gelu_pytorch_tanh"),
        ("qwen3_moe", "hidden_act", "gelu_10"),
        ("gpt_oss", "hidden_act", "silu"),
    ],
)
def test_experts_have_the_logits_of_transformers(model_type: str, field: str, activation: str, tmp_path: Path) -> None:
    config = make_config(model_type)
    setattr(config, field, activation)
    folder = save_checkpoint(config, tmp_path)
    with torch.inference_mode():
        wanted = load_transformers_model(folder)(torch.tensor([TOKENS]), use_cache=False).logits[0]
    found = native_logits(folder)
    assert (found - wanted).abs().max() <= TOLERANCE * (wanted.max() - wanted.min())
