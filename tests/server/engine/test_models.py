"""The engine over real architectures, compared with transformers' generate."""

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
from server.engine.engine import Engine, EngineLimits
from server.engine.engine_statistics import EngineStatistics
from server.engine.interface import GenerationRequest, SamplingParams
from server.engine.kv.block_manager import BlockGroup, BlockManager
from server.engine.kv.state_snapshots import SnapshotPool
from server.engine.pass_planning import PassLimits
from server.engine.runner import PagedModelRunner
from server.engine.scheduler import SchedulerLimits
from server.engine.text.detokenizer import WindowDetokenizer
from server.kernels import torch_backend
from server.kernels.compute_pool import ComputePool
from server.model.attention import paged_attention as attention
from server.model.attention.kv_cache import KVCache
from server.model.modules import linear
from server.model.sequential.sequential_trunk import SequentialTrunk
from server.model.trunk.trunk import Trunk
from server.model.trunk_loader import load_trunk
from tests.checkpoints import CONFIGS, make_checkpoint

pytestmark = pytest.mark.slow

BLOCK_SIZE, MAX_RUNNING, MAX_BATCHED = 4, 5, 16
NUM_TOKENS = 12
LETTERS = 0x4E00  # code point of token 0; each token is one character
RECURRENT = ["qwen3_next", "jamba", "zaya"]
OTHERS = [
    "deepseek_v4",
    "glm_moe_dsa",
    "llama4_text",
]  # attention by sequence, by an indexer, in chunks
MODELS = [*CONFIGS, *RECURRENT, *OTHERS]
ON_ONE_THREAD = {"gpt_oss", "deepseek_v3", "qwen3_next"}  # besides on three


@dataclass(frozen=True)
class Written:
    """Output of a request."""

    token_ids: list[int]
    logprobs: list[float]


def decode(token_ids: list[int]) -> str:
    return "".join(chr(LETTERS + token) for token in token_ids)


@contextmanager
def engine_over(
    trunk: Trunk, store: ExpertStore, num_blocks: int, passes: PassLimits | None = None
) -> Iterator[tuple[Engine, BlockManager]]:
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
    blocks = BlockManager(groups, BLOCK_SIZE, facts.shares_prefixes, snapshots=snapshots)
    kv_cache, states = KVCache(trunk.facts.kv_groups, counts, BLOCK_SIZE), trunk.new_states(2 * MAX_RUNNING)
    engine = Engine(
        PagedModelRunner(trunk, kv_cache, store, states=states),
        blocks,
        EngineLimits(num_blocks * BLOCK_SIZE, 100, SchedulerLimits(MAX_RUNNING, MAX_BATCHED), passes),
        vocab_size=trunk.vocab_size,
        eos_token_ids=frozenset(),
        detokenizer=lambda prompt, _written: WindowDetokenizer(decode, (), prompt),
        grammar={}.__getitem__,
        weights={}.__getitem__,
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
    """Submit all prompts at once, and a later one that repeats the longest."""
    return list(await asyncio.gather(*(write(engine, prompt, sampling) for prompt in prompts)))


def write_company(
    trunk: Trunk | SequentialTrunk, prompts: Sequence[Sequence[int]]
) -> tuple[list[list[int]], EngineStatistics]:
    """Generate greedily from all prompts together, with the fewest experts and a cache that forces preemption."""
    store = ExpertStore(trunk.catalog, least_bytes(trunk.catalog, trunk.facts.top_k))
    with engine_over(trunk, store, num_blocks=24) as (engine, _):
        written = asyncio.run(write_all(engine, prompts, SamplingParams(NUM_TOKENS, temperature=0.0)))
        statistics = engine.statistics
    store.close()
    assert statistics.preemptions > 0
    return [each.token_ids for each in written], statistics


def some_prompts(seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    prompts = [[rng.randrange(3, 128) for _ in range(length)] for length in (3, 41, 12, 26, 1, 17)]
    return [*prompts, prompts[1], [*prompts[1][:30], 5, 6]]


@pytest.fixture
def pool(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ComputePool]:
    """Threads that share out experts, linear layers and attention, however small."""
    monkeypatch.setattr("server.engine.kv.block_manager.MIN_SNAPSHOT_TOKENS", 8)
    for module in (attention, linear, torch_backend):
        monkeypatch.setattr(module, "LEAST_SHARED_BYTES", 0)
    monkeypatch.setattr(linear, "LEAST_WEIGHTS", 0)
    pool = ComputePool(getattr(request, "param", 3))
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def generated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[int]]]:
    """A checkpoint, and what transformers generates from each prompt."""
    folder = make_checkpoint(request.param, tmp_path_factory.mktemp(request.param))
    stock = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    expected = []
    for prompt in some_prompts(1):
        ids = stock.generate(
            torch.tensor([prompt]), max_new_tokens=NUM_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        expected.append(ids[0, len(prompt) :].tolist())
    return folder, expected


@pytest.mark.parametrize(
    ("generated", "pool"),
    [(name, threads) for name in MODELS for threads in ((3, 1) if name in ON_ONE_THREAD else (3,))],
    indirect=True,
)
def test_batched_requests_equal_transformers_generate(
    generated: tuple[Path, list[list[int]]], pool: ComputePool
) -> None:
    """Prompts are chunked and share prefixes, the cache forces preemption, and the store holds the fewest experts."""
    folder, expected = generated
    trunk = load_trunk(folder, torch.float32, pool=pool)
    written, statistics = write_company(trunk, some_prompts(1))
    assert written == expected
    assert (statistics.prefix_cache_hits > 0) == trunk.facts.shares_prefixes


@pytest.mark.parametrize(
    ("name", "dtype"),
    # Plain, with windows, with states, sequence by sequence; test_deterministic.py has other models and types.
    [("qwen3_moe", torch.float32), *((name, torch.bfloat16) for name in ("gpt_oss", "qwen3_next", "deepseek_v4"))],
    ids=str,
)
def test_deterministic_requests_are_batch_invariant_for_any_cache_size(
    name: str, dtype: torch.dtype, pool: ComputePool, tmp_path: Path
) -> None:
    """Tokens and logprobs are bitwise equal: alone, together, in other orders, with small and large caches."""
    trunk = load_trunk(make_checkpoint(name, tmp_path, dtype), dtype, is_deterministic=True, pool=pool)
    prompts = [some_prompts(2)[place] for place in (0, 1, 2, 6)]
    sampling = SamplingParams(8, temperature=1.0, seed=7, logprobs=0)
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
