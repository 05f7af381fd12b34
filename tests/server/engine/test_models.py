"""The engine over real architectures: what each sequence gives with one-sequence code, in any company."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers

from expert_store import ExpertStore, least_bytes
from server.engine.block_manager import BlockGroup, BlockManager
from server.engine.detokenizer import WindowDetokenizer
from server.engine.engine import Engine, EngineLimits
from server.engine.request import GenerationRequest, SamplingParams
from server.engine.runner import PagedModelRunner
from server.engine.scheduler import SchedulerLimits
from server.engine.snapshots import SnapshotPool
from server.kernels import reference_backend
from server.kernels.pool import ComputePool
from server.model import attention, linear
from server.model.kv_cache import KVCache
from server.model.loading import load_trunk
from server.model.solo import SoloTrunk
from server.model.trunk import Trunk
from server.observability.statistics import EngineStatistics
from tests.checkpoints import CONFIGS, make_checkpoint

BLOCK_SIZE, MAX_RUNNING, MAX_BATCHED = 4, 5, 16
NUM_TOKENS = 24
LETTERS = 0x4E00  # each token is one character from there on
RECURRENT = ["qwen3_next", "jamba", "zaya"]
SOLO = ["deepseek_v4", "glm_moe_dsa"]


@dataclass(frozen=True)
class Written:
    """What a request gave."""

    token_ids: list[int]
    logprobs: list[float]


def decode(token_ids: list[int]) -> str:
    return "".join(chr(LETTERS + token) for token in token_ids)


@contextmanager
def engine_over(trunk: Trunk, store: ExpertStore, num_blocks: int) -> Iterator[tuple[Engine, BlockManager]]:
    """A running engine whose cache holds ``num_blocks`` blocks of each group without a window."""
    counts = []
    for group in trunk.facts.kv_groups:
        of_window = MAX_RUNNING * (-(-((group.window or 0) + MAX_BATCHED) // BLOCK_SIZE) + 1)
        counts.append(num_blocks if group.window is None else min(num_blocks, of_window))
    groups = [
        BlockGroup(count, group.window, group.is_chunked)
        for count, group in zip(counts, trunk.facts.kv_groups, strict=True)
    ]
    facts = trunk.facts
    has_snapshots = facts.states and facts.shares_prefixes
    snapshots = SnapshotPool(range(MAX_RUNNING, 2 * MAX_RUNNING)) if has_snapshots else None
    blocks = BlockManager(groups, BLOCK_SIZE, facts.shares_prefixes, snapshots)
    kv_cache, states = KVCache(trunk.facts.kv_groups, counts, BLOCK_SIZE), trunk.new_states(2 * MAX_RUNNING)
    engine = Engine(
        PagedModelRunner(trunk, kv_cache, store, states=states),
        blocks,
        EngineLimits(num_blocks * BLOCK_SIZE, 100, SchedulerLimits(MAX_RUNNING, MAX_BATCHED)),
        trunk.vocab_size,
        frozenset(),
        lambda prompt, _written: WindowDetokenizer(decode, (), prompt),
    )
    engine.start()
    try:
        yield engine, blocks
    finally:
        engine.stop()
    blocks.check_integrity([])


async def write(engine: Engine, prompt: Sequence[int], sampling: SamplingParams) -> Written:
    stream = engine.submit(GenerationRequest("test", tuple(prompt), sampling))
    token_ids, logprobs = [], []
    async for event in stream:
        token_ids += [ord(letter) - LETTERS for letter in event.text]
        logprobs += [logprob.logprob for logprob in event.logprobs]
    return Written(token_ids, logprobs)


async def write_all(engine: Engine, prompts: Sequence[Sequence[int]], sampling: SamplingParams) -> list[Written]:
    """All prompts at once, with a second comer that repeats the longest."""
    return list(await asyncio.gather(*(write(engine, prompt, sampling) for prompt in prompts)))


def write_company(
    trunk: Trunk | SoloTrunk, prompts: Sequence[Sequence[int]]
) -> tuple[list[list[int]], EngineStatistics]:
    """What all prompts together give greedily, over the fewest experts and a cache so small that some are preempted."""
    store = ExpertStore(trunk.catalog, least_bytes(trunk.catalog, trunk.facts.top_k))
    with engine_over(trunk, store, num_blocks=40) as (engine, _):
        written = asyncio.run(write_all(engine, prompts, SamplingParams(NUM_TOKENS, temperature=0.0)))
        statistics = engine.statistics
    store.close()
    assert statistics.preemptions > 0
    return [each.token_ids for each in written], statistics


def some_prompts(seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    prompts = [[rng.randrange(3, 128) for _ in range(length)] for length in (3, 41, 12, 26, 1, 17)]
    return [*prompts, prompts[1], [*prompts[1][:30], 5, 6]]


@pytest.fixture(params=[1, 3], ids=["1 thread", "3 threads"])
def pool(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ComputePool]:
    """Threads that share out experts, linear layers and attention, however small."""
    monkeypatch.setattr("server.engine.block_manager.LEAST_TOKENS", 8)
    for module in (attention, linear, reference_backend):
        monkeypatch.setattr(module, "LEAST_SHARED_BYTES", 0)
    monkeypatch.setattr(linear, "LEAST_WEIGHTS", 0)
    pool = ComputePool(request.param)
    yield pool
    pool.close()


@pytest.mark.parametrize("name", [*CONFIGS, *RECURRENT, *SOLO, "llama4_text"])
def test_requests_in_company_write_what_stock_generates(name: str, pool: ComputePool, tmp_path: Path) -> None:
    """With chunked prompts, a cache so small that some are preempted, shared beginnings, and the fewest experts."""
    folder = make_checkpoint(name, tmp_path)
    stock = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompts = some_prompts(1)
    expected = []
    for prompt in prompts:
        ids = stock.generate(
            torch.tensor([prompt]), max_new_tokens=NUM_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        expected.append(ids[0, len(prompt) :].tolist())
    trunk = load_trunk(folder, torch.float32, pool=pool)
    written, statistics = write_company(trunk, prompts)
    assert written == expected
    assert (statistics.prefix_cache_hits > 0) == trunk.facts.shares_prefixes


@pytest.mark.parametrize("pool", [3], ids=["3 threads"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss", "deepseek_v3", "qwen3_next", "deepseek_v4"])
def test_deterministic_requests_write_the_same_in_any_company_and_cache(
    name: str, dtype: torch.dtype, pool: ComputePool, tmp_path: Path
) -> None:
    """Tokens and logprobs to the last bit: alone, together, in other orders, with small caches and with large ones."""
    trunk = load_trunk(make_checkpoint(name, tmp_path, dtype), dtype, is_deterministic=True, pool=pool)
    prompts = [some_prompts(2)[place] for place in (0, 1, 2, 6)]
    sampling = SamplingParams(NUM_TOKENS // 3, temperature=1.0, seed=7, logprobs=0)
    found: list[list[Written]] = []
    least, most = least_bytes(trunk.catalog, trunk.facts.top_k), trunk.catalog.total_bytes
    for expert_bytes, num_blocks, order in ((most, 400, None), (least, 24, 1), (least, 40, 2)):
        store = ExpertStore(trunk.catalog, expert_bytes)
        with engine_over(trunk, store, num_blocks) as (engine, _):
            if order is None:
                alone = [asyncio.run(write(engine, prompt, sampling)) for prompt in prompts]
                found.append(alone)
            else:
                places = random.Random(order).sample(range(len(prompts)), len(prompts))
                shuffled = asyncio.run(write_all(engine, [prompts[place] for place in places], sampling))
                found.append([shuffled[places.index(place)] for place in range(len(prompts))])
        store.close()
    assert found[1] == found[0]
    assert found[2] == found[0]
