"""Decode steps that the kernels begin before they are asked for have the results of those that they are asked for."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from expert_store import ExpertKey, ExpertStore
from server.engine.sampling.native_choice import choose_natively
from server.engine.sampling.random_numbers import uniforms
from server.kernels.compute_pool import ComputePool
from server.kernels.native.available import availability
from server.kernels.native.library import KernelError
from server.kernels.native.linear import native_linear, plain_matrix
from server.kernels.native.structures.sampling import RowSampling
from server.model.attention.kv_cache import KVCache
from server.model.chunk_weights import ChunkWeights, WeightedAdapter
from server.model.lora_adapter import LoraAdapter, LoraMatrix
from server.model.recurrent.states import StateCache
from server.model.step import HostLogits, SequenceChunk, TokenChoice
from server.model.trunk.trunk import Trunk
from tests.checkpoints import save_checkpoint
from tests.expert_store.waiting import TIMEOUT, wait_until_idle
from tests.families import make_config
from tests.server.model.native_layers.test_native_layers import BLOCK, load

MIXERS = (
    "qwen3_moe",
    "gpt_oss",
    "gemma4_text",
    "deepseek_v3",
    "deepseek_v4",
    "qwen3_5_moe_text",
    "jamba",
    "qwen4_exp_text",
    "inkling_text",
    "zaya",
)
PROMPTS = [[3, 5, 7], [11], [13, 2]]
EVERY = [0, 1, 2]
STEPS = 40  # more than a block of the KV cache has tokens, and more than a run

pytestmark = pytest.mark.skipif(not availability().runnable, reason="the native kernels were not built")


class Writer:
    """Writes texts of some sequences with random tokens; its chunks have blocks for one token more.

    Args:
        is_ahead: whether steps may begin ahead; if not, tokens are chosen after each.
        weights: of the first sequence, beside the base model's.
    """

    def __init__(
        self,
        trunk: Trunk,
        store: ExpertStore,
        pool: ComputePool,
        *,
        is_ahead: bool,
        weights: ChunkWeights | None = None,
    ):
        self._weights = [weights, *[None] * (len(PROMPTS) - 1)]
        self._trunk, self._store, self._is_ahead = trunk, store, is_ahead
        self._kernels = pool.kernels
        per_sequence = -(-(STEPS + 8) // BLOCK)
        groups = trunk.facts.kv_groups
        self._cache = KVCache(groups, [per_sequence * len(PROMPTS)] * len(groups), BLOCK)
        self._blocks = [
            [*range(first, first + per_sequence)] for first in range(0, per_sequence * len(PROMPTS), per_sequence)
        ]
        self._states: StateCache = trunk.new_states(len(PROMPTS))
        self.texts = [list(prompt) for prompt in PROMPTS]
        self._cached = [0] * len(PROMPTS)
        self._row = RowSampling(0.0, 0.95, 1.0, -1e30, 0)

    def step(self, sequences: list[int]) -> None:
        """Run all tokens of some sequences that have not run, and choose the next one of each."""
        chunks = [self._chunk(index) for index in sequences]
        output = self._trunk.forward(chunks, self._cache, self._store, None, self._states)
        tokens = output.tokens
        if tokens is None:
            assert isinstance(output.scores, HostLogits)
            draws = [self._draw(index, 0) for index in sequences]
            tokens = choose_natively(self._kernels, output.scores, [_State(self._row)] * len(sequences), draws)
        for index, token in zip(sequences, tokens, strict=True):
            assert token is not None
            self._cached[index] = len(self.texts[index])
            self.texts[index].append(token)

    def _chunk(self, index: int) -> SequenceChunk:
        cached, text = self._cached[index], self.texts[index]
        table = self._blocks[index][: -(-(len(text) + 1) // BLOCK)]
        choice = TokenChoice(self._row, self._draw(index, 0), self._draw(index, 1)) if self._is_ahead else None
        tables = [table] * len(self._trunk.facts.kv_groups)
        num_prompt = len(PROMPTS[index])
        return SequenceChunk(
            text[cached:],
            cached,
            tables,
            slot=index,
            num_prompt=num_prompt,
            weights=self._weights[index],
            choice=choice,
        )

    def _draw(self, index: int, later: int) -> float:
        return uniforms([index], [len(self.texts[index]) + later])[0]


class _State:
    """The part of a ``SamplingState`` that the kernels need."""

    def __init__(self, row: RowSampling):
        self.row = row


@pytest.fixture
def open_model(tmp_path: Path, pool: ComputePool) -> Iterator[Callable[[str], tuple[Trunk, ExpertStore]]]:
    """Return a function that loads a family; all of its experts are in memory."""
    stores = []

    def opened(model_type: str) -> tuple[Trunk, ExpertStore]:
        save_checkpoint(make_config(model_type), tmp_path)
        trunk = load(tmp_path, pool)
        assert trunk.runs_ahead
        stores.append(ExpertStore(trunk.catalog, trunk.catalog.total_bytes))
        stores[-1].preload(stores[-1].absent(), TIMEOUT)
        wait_until_idle(stores[-1])
        return trunk, stores[-1]

    yield opened
    for store in stores:
        store.close()
        store.check_integrity()


def count(monkeypatch: pytest.MonkeyPatch, kernels: object, name: str) -> list[int]:
    """Count the calls of a method of the kernels."""
    calls, method = [0], getattr(kernels, name)

    def counted(*arguments: object) -> object:
        calls[0] += 1
        return method(*arguments)

    monkeypatch.setattr(kernels, name, counted)
    return calls


@pytest.mark.parametrize("model_type", MIXERS)
def test_texts_are_those_of_single_steps_while_sequences_come_and_go(
    model_type: str,
    open_model: Callable[[str], tuple[Trunk, ExpertStore]],
    pool: ComputePool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trunk, store = open_model(model_type)
    one, other = (Writer(trunk, store, pool, is_ahead=is_ahead) for is_ahead in (False, True))
    chances = random.Random(1)
    steps = [EVERY] * 2 + [EVERY if chances.random() < 0.9 else chances.sample(EVERY, 2) for _ in range(STEPS)]
    for sequences in steps:
        one.step(sequences)
    layers, starts = (count(monkeypatch, pool.kernels, name) for name in ("layers", "start_decodes"))
    for sequences in steps:
        other.step(sequences)
    trunk.prepare_step(())
    assert other.texts == one.texts
    assert layers[0] == 1  # of the prompts
    assert starts[0] < STEPS - 1  # at least the second of two steps alike begins ahead


def test_another_call_of_the_kernels_stops_the_step_that_has_begun(
    open_model: Callable[[str], tuple[Trunk, ExpertStore]], pool: ComputePool
) -> None:
    trunk, store = open_model("qwen3_moe")
    one, other = (Writer(trunk, store, pool, is_ahead=is_ahead) for is_ahead in (False, True))
    rows, weight = torch.ones(1, 8), torch.eye(8)
    unit = plain_matrix(weight)
    assert unit is not None
    for _ in range(6):
        one.step(EVERY)
        other.step(EVERY)  # another one has begun then
        assert torch.equal(native_linear(pool.kernels, rows, unit), rows)
    assert other.texts == one.texts


def test_a_smaller_budget_of_experts_waits_for_one_step_at_most(
    open_model: Callable[[str], tuple[Trunk, ExpertStore]], pool: ComputePool
) -> None:
    trunk, store = open_model("qwen3_moe")
    one, other = (Writer(trunk, store, pool, is_ahead=is_ahead) for is_ahead in (False, True))
    for _ in range(6):
        one.step(EVERY)
    for step in range(6):
        if step == 3:
            store.resize(host_bytes=trunk.catalog.total_bytes // 2)
        other.step(EVERY)
    assert store.host_resident_bytes <= trunk.catalog.total_bytes // 2
    assert other.texts == one.texts


def test_a_sequence_with_an_adapter_runs_ahead(
    open_model: Callable[[str], tuple[Trunk, ExpertStore]], pool: ComputePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk, store = open_model("qwen3_moe")
    generator = torch.Generator().manual_seed(2)
    linears = {}
    for name, (inputs, outputs) in trunk.adaptable.items():
        down, up = (torch.randn(shape, generator=generator) for shape in ((4, inputs), (outputs, 4)))
        linears[name] = (LoraMatrix(down, up, 0.1),)
    weights = ChunkWeights(adapters=(WeightedAdapter(LoraAdapter("law", linears, {})),))
    plain, one, other = (
        Writer(trunk, store, pool, is_ahead=is_ahead, weights=given)
        for is_ahead, given in ((False, None), (False, weights), (True, weights))
    )
    starts = count(monkeypatch, pool.kernels, "start_decodes")
    for writer in (plain, one, other):
        for _ in range(8):
            writer.step(EVERY)
    trunk.prepare_step(())
    assert 0 < starts[0] < 7
    assert other.texts == one.texts
    assert one.texts[0] != plain.texts[0]
    assert one.texts[1:] == plain.texts[1:]


@pytest.mark.parametrize("method", ["start_decodes", "deferred work"])
def test_a_step_that_fails_can_run_again(
    method: str,
    open_model: Callable[[str], tuple[Trunk, ExpertStore]],
    pool: ComputePool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trunk, store = open_model("qwen3_5_moe_text")
    one, other = (Writer(trunk, store, pool, is_ahead=is_ahead) for is_ahead in (False, True))
    for _ in range(8):
        one.step(EVERY)
    for step in range(8):
        if step in {2, 5}:
            with monkeypatch.context() as patch:
                if method == "start_decodes":
                    trunk.prepare_step(())
                    patch.setattr(pool.kernels, method, fail)
                else:  # beside a step that has begun
                    pool.kernels.deferred.add(fail)
                with pytest.raises(KernelError):
                    other.step(EVERY)
        other.step(EVERY)
    trunk.prepare_step(())
    assert other.texts == one.texts
    assert store.evict([ExpertKey(layer, 0) for layer in trunk.catalog.layers]) == len(trunk.catalog.layers)


def fail(*_: object) -> None:
    raise KernelError("the native kernels ran out of memory")
