"""Sizes for the memory planner, without a model."""

from __future__ import annotations

from pathlib import Path

import torch

from server.memory.plan import ModelNeeds
from server.memory.step_memory import StepShape
from server.model.attention.kv_cache import KVGroup, KVShape
from tests.expert_store.files import make_catalog

SHAPE = KVShape(2, 16, 16, torch.bfloat16)  # 128 bytes a token and layer
GROUP = KVGroup(None, dict.fromkeys(range(4), SHAPE))
STEP = StepShape(
    hidden=64,
    queries=64,
    keys=32,
    absorbed=0,
    recurrent=0,
    dense=128,
    expert=32,
    num_experts=8,
    num_routed=2,
    top_k=2,
    vocabulary=1000,
    itemsize=2,
    has_native=True,
    has_modules=False,
)


def make_needs(folder: Path, trunk_bytes: int = 50 << 20, num_experts: int = 256, longest: int = 2048) -> ModelNeeds:
    """Make the needs of a model of two layers, whose experts have one page each."""
    catalog = make_catalog(folder, num_experts=num_experts)
    return ModelNeeds(catalog, trunk_bytes, 2, (GROUP,), longest, 0, True, STEP)
