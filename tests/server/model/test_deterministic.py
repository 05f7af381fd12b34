"""Deterministic steps: a sequence's logits have the same bits beside any other sequences, in chunks of any size."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
import torch

from expert_store import ExpertStore, least_bytes
from server.kernels.invariant_matmul import NotInvariantError
from server.model.attention.kv_cache import KVCache
from server.model.attention.window import oldest_seen
from server.model.checkpoint.weight_formats import WeightFormat
from server.model.errors import ModelError
from server.model.modules import probe_run
from server.model.step import SequenceChunk
from server.model.transformers_hooks.batching_checks import varies_with_batch
from server.model.trunk.trunk import Trunk
from server.model.trunk_loader import load_trunk
from tests.checkpoints import CONFIGS, make_checkpoint
from tests.server.model.checkpoint.test_packing import pack
from tests.server.model.test_parity import generate

BLOCK_SIZE = 4
LONGEST = 160
BLOCKS = LONGEST // BLOCK_SIZE
PROMPT_LENGTHS = (1, 9, 140)  # the last goes over a segment of attention
STEPS = 4
# All in the type that checkpoints have; in float32 those whose experts and attention differ most.
CASES = [
    *((name, torch.bfloat16) for name in CONFIGS),
    *((name, torch.float32) for name in ("qwen3_moe", "gpt_oss", "deepseek_v3")),
]


@pytest.fixture(scope="module", params=list(CONFIGS))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(request.param, tmp_path_factory.mktemp("checkpoints") / request.param, torch.bfloat16)


@contextmanager
def threads_of_torch(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Requests:
    """Runs sequences step by step, and collects the logits of each."""

    def __init__(self, trunk: Trunk, num_slots: int | None, seed: int):
        self._trunk = trunk
        size = least_bytes(trunk.catalog, num_slots) if num_slots else trunk.catalog.total_bytes
        self._store = ExpertStore(trunk.catalog, size)
        groups = trunk.facts.kv_groups
        self._cache = KVCache(groups, [8 * BLOCKS] * len(groups), BLOCK_SIZE)
        self._random = random.Random(seed)
        self._tables = list(range(8 * BLOCKS))
        self._random.shuffle(self._tables)

    def alone(self, prompt: list[int]) -> torch.Tensor:
        """Return the logits of greedy steps, with the prompt in one piece."""
        return self._run([prompt], [LONGEST])[0]

    def in_batch(self, prompts: list[list[int]]) -> list[torch.Tensor]:
        """Return the same of prompts that run together and with others, at random places, all in random pieces."""
        others = [self._prompt(self._random.choice([1, 2, 5, 17, 40])) for _ in range(self._random.randint(1, 5))]
        together = [*prompts, *others]
        places = self._random.sample(range(len(together)), len(together))
        rows = self._run([together[place] for place in places], [1, 2, 3, 7, 16, 33, LONGEST])
        return [rows[places.index(number)] for number in range(len(prompts))]

    def close(self) -> None:
        self._store.close()

    def _prompt(self, length: int) -> list[int]:
        return [self._random.randrange(3, 128) for _ in range(length)]

    def _run(self, prompts: list[list[int]], pieces: list[int]) -> list[torch.Tensor]:
        texts, cached = [list(prompt) for prompt in prompts], [0] * len(prompts)
        tables = [self._tables[i * BLOCKS : (i + 1) * BLOCKS] for i in range(len(prompts))]
        rows: list[list[torch.Tensor]] = [[] for _ in prompts]

        def tables_of(i: int) -> list[list[int]]:
            """Return block tables without the blocks that no later token sees."""
            groups = self._trunk.facts.kv_groups
            oldest = [oldest_seen(cached[i], group.window, group.is_chunked) if group.window else 0 for group in groups]
            gone = [max(0, position) // BLOCK_SIZE for position in oldest]
            return [[-1] * count + tables[i][count:] for count in gone]

        for _ in count():
            active = [i for i in range(len(prompts)) if len(rows[i]) < STEPS]
            if not active:
                break
            self._random.shuffle(active)
            chunks = [
                SequenceChunk(texts[i][cached[i] : cached[i] + self._random.choice(pieces)], cached[i], tables_of(i))
                for i in active
            ]
            logits = self._trunk.forward(chunks, self._cache, self._store).logits
            for i, chunk, row in zip(active, chunks, logits, strict=True):
                cached[i] += chunk.num_tokens
                if cached[i] == len(texts[i]):
                    rows[i].append(row)
                    texts[i].append(int(row.argmax()))
        return [torch.stack(found) for found in rows]


def check(trunk: Trunk) -> None:
    """Compare steps alone with random batches: the fewest experts in memory and one thread, then all and two."""
    prompts = [[random.Random(length).randrange(3, 128) for _ in range(length)] for length in PROMPT_LENGTHS]
    for num_slots, num_threads in ((trunk.facts.top_k, 1), (None, 2)):
        with threads_of_torch(num_threads):
            requests = Requests(trunk, None, 0)
            alone = [requests.alone(prompt) for prompt in prompts]
            requests.close()
            requests = Requests(trunk, num_slots, seed=num_threads)
            assert all(map(torch.equal, requests.in_batch(prompts), alone))
            requests.close()


@pytest.mark.slow
@pytest.mark.parametrize(("checkpoint", "dtype"), CASES, indirect=["checkpoint"], ids=str)
def test_batch_order_chunks_and_cache_size_change_no_bit(checkpoint: Path, dtype: torch.dtype) -> None:
    check(load_trunk(checkpoint, dtype, is_deterministic=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("checkpoint", "weights", "dtype"),
    [
        ("qwen3_moe", "int8", torch.float32),
        ("gpt_oss", "int8", torch.float32),
        ("gpt_oss", "int4", torch.bfloat16),
        ("deepseek_v3", "int4", torch.bfloat16),
    ],
    indirect=["checkpoint"],
    ids=str,
)
def test_quantised_experts_change_no_bit_either(
    checkpoint: Path, tmp_path: Path, weights: WeightFormat, dtype: torch.dtype
) -> None:
    check(load_trunk(pack(checkpoint, tmp_path / "packed", weights), dtype, is_deterministic=True))


@pytest.mark.slow
def test_logits_are_near_those_of_the_usual_arithmetic(checkpoint: Path) -> None:
    usual, deterministic = (
        load_trunk(checkpoint, torch.float32),
        load_trunk(checkpoint, torch.float32, is_deterministic=True),
    )
    store = ExpertStore(usual.catalog, usual.catalog.total_bytes)
    for (tokens, logits), (usual_tokens, usual_logits) in zip(
        generate(deterministic, store), generate(usual, store), strict=True
    ):
        assert tokens == usual_tokens
        torch.testing.assert_close(logits, usual_logits, atol=1e-4, rtol=1e-4)
    store.close()


def test_a_model_that_is_not_batch_invariant_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_checkpoint("qwen3_moe", tmp_path)
    monkeypatch.setattr(probe_run, "varies_with_batch", lambda *_: True)
    load_trunk(folder, torch.float32)
    with pytest.raises(ModelError, match=r"Qwen3MoeForCausalLM is not batch-invariant; remove `--deterministic`"):
        load_trunk(folder, torch.float32, is_deterministic=True)


def test_a_processor_whose_products_depend_on_the_batch_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> bool:
        raise NotInvariantError("a product depends on the place of a row")

    folder = make_checkpoint("qwen3_moe", tmp_path)
    monkeypatch.setattr(probe_run, "varies_with_batch", refuse)
    with pytest.raises(ModelError, match="depends on the place of a row"):
        load_trunk(folder, torch.float32, is_deterministic=True)


@pytest.mark.parametrize("effect", [0.0, 1e-7])
def test_a_difference_of_one_bit_between_batches_is_found(effect: float) -> None:
    def run(tokens: list[int], positions: list[int]) -> torch.Tensor:
        rows = torch.tensor(tokens).float() / 7 + torch.tensor(positions)
        return (rows * (1 + effect * len(tokens))).unsqueeze(1)

    assert varies_with_batch(range(3, 9), run) == (effect > 0)
