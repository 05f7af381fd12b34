"""Requests that share steps report each miss once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from expert_store import ExpertStore, least_bytes
from server.engine.engine import Engine
from server.engine.interface import ExpertUsage, GenerationRequest, SamplingParams
from server.kernels.compute_pool import ComputePool
from server.kernels.native.available import availability
from server.kernels.native.library import Kernels
from server.model.trunk_loader import load_trunk
from tests.checkpoints import make_checkpoint
from tests.server.engine.test_models import engine_over

pytestmark = pytest.mark.slow


async def usage_of(engine: Engine, *prompt: int) -> ExpertUsage:
    stream = engine.submit(GenerationRequest("test", prompt, SamplingParams(12, temperature=0.0)))
    usage = [event.expert_usage async for event in stream][-1]
    assert usage is not None
    return usage


@pytest.mark.parametrize("is_native", [True, False], ids=["native", "modules"])
def test_the_sums_over_two_requests_equal_the_counters_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_native: bool
) -> None:
    if is_native and not availability().runnable:
        pytest.skip("no native kernels here")
    monkeypatch.setattr("tests.server.engine.test_models.BLOCK_SIZE", 16)  # the native kernels take no other
    pool = ComputePool(1, Kernels(1) if is_native else None)
    trunk = load_trunk(make_checkpoint("qwen3_moe", tmp_path), torch.float32, pool=pool)
    assert trunk.facts.program.is_native == is_native
    store = ExpertStore(trunk.catalog, least_bytes(trunk.catalog, trunk.facts.top_k) * 2)

    async def together() -> list[ExpertUsage]:
        return list(await asyncio.gather(usage_of(engine, 3, 17, 5), usage_of(engine, 40, 23, 9, 11)))

    with engine_over(trunk, store, num_blocks=40) as (engine, _):
        usages = asyncio.run(together())
    statistics = store.statistics()
    store.close()
    pool.close()
    assert sum(usage.num_requests for usage in usages) > sum(statistics.lookups.values())  # they shared experts
    misses = sum(count for (tier, _), count in statistics.lookups.items() if tier == "disk")
    assert sum(usage.num_misses for usage in usages) == misses > 0
    assert sum(usage.bytes_read for usage in usages) == statistics.loaded_bytes
