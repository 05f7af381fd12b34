"""Measured memory of a step, compared with its bound."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import transformers

from expert_store import ExpertStore
from server.kernels.compute_pool import ComputePool
from server.kernels.native.available import availability, choose_level
from server.kernels.native.library import Kernels
from server.loading.memory import needs_of_trunk
from server.memory.kv_cache_plan import BLOCK_SIZE
from server.memory.step_memory import StepShape, step_bytes
from server.model.attention.kv_cache import KVCache
from server.model.from_config.shapes import infer_shapes
from server.model.step import SequenceChunk
from server.model.trunk.trunk import Trunk
from server.model.trunk_loader import load_trunk
from tests.checkpoints import COMMON, save_checkpoint
from tests.families import make_config

NUM_TOKENS, NUM_LOGITS = 2048, 8
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a model whose steps use much more memory than its weights."""
    folder = tmp_path_factory.mktemp("model")
    sizes = {"hidden_size": 256, "num_hidden_layers": 2, "max_position_embeddings": 4096, "head_dim": 32}
    sizes |= {"intermediate_size": 256, "moe_intermediate_size": 256, "num_experts": 8, "num_experts_per_tok": 4}
    save_checkpoint(transformers.Qwen3MoeConfig(**(COMMON | sizes)), folder)
    return folder


def status(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) << 10


@contextmanager
def peak_beyond_now() -> Iterator[list[int]]:
    """Measure by how much resident memory rises within the block."""
    CLEAR_REFS.write_text("5")  # the peak is counted from here
    before, peak = status("VmRSS"), list[int]()
    yield peak
    peak.append(status("VmHWM") - before)


def test_recurrent_layers_count_by_their_channels() -> None:
    """This model's convolutions have 8 heads of 8 values, and 16 keys and queries each of one group."""
    config = make_config("nemotron_h")
    shapes = infer_shapes(config, torch.float32)
    steps = [
        StepShape.of(
            config,
            shapes.kv_groups,
            8,
            num_routed=2,
            top_k=2,
            itemsize=4,
            has_native=True,
            has_modules=False,
            states=states,
        )
        for states in (shapes.states, {})
    ]
    widest = 8 * 8 + 2 * config.n_groups * config.ssm_state_size
    assert [step.recurrent for step in steps] == [widest, 0]
    assert step_bytes(steps[0], 100, 1) > step_bytes(steps[1], 100, 1)


@pytest.mark.slow
@pytest.mark.parametrize("is_native", [True, False], ids=["native", "torch"])
def test_a_step_uses_no_more_than_its_bound(folder: Path, is_native: bool) -> None:
    if is_native and not availability().runnable:
        pytest.skip("the native kernels were not built")
    pool = ComputePool(2, Kernels(2, choose_level("auto") or "portable") if is_native else None)
    trunk = load_trunk(folder, torch.float32, pool=pool)
    assert isinstance(trunk, Trunk)
    needs = needs_of_trunk(trunk)
    assert (needs.step.has_native, needs.step.has_modules) == (is_native, not is_native)
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes, least_unpinned=4)
    cache = KVCache(trunk.facts.kv_groups, [NUM_TOKENS // BLOCK_SIZE], BLOCK_SIZE)
    numbers = random.Random(0)

    def run(num_tokens: int, num_logits: int) -> None:
        tokens = [numbers.randrange(3, 128) for _ in range(num_tokens)]
        trunk.forward([SequenceChunk(tokens, 0, [list(range(NUM_TOKENS // BLOCK_SIZE))], num_logits)], cache, store)

    try:
        run(16, 1)  # libraries take what they keep
        with peak_beyond_now() as peak:
            run(NUM_TOKENS, NUM_LOGITS)
    finally:
        store.close()
    kv_bytes = NUM_TOKENS * trunk.facts.token_bytes
    assert peak[0] - kv_bytes <= step_bytes(needs.step, NUM_TOKENS, NUM_LOGITS)


def test_queries_are_those_of_the_layer_with_the_most_heads() -> None:
    """The sliding layers of this model have six heads of eight values, and the others four."""
    config = make_config("step3p7")
    shapes = infer_shapes(config, torch.float32)
    step = StepShape.of(
        config.get_text_config(),
        shapes.kv_groups,
        8,
        num_routed=2,
        top_k=2,
        itemsize=4,
        has_native=False,
        has_modules=True,
        states={},
    )
    assert step.queries == 6 * 8
