"""Steps that predict the next layer's experts run in one call of the kernels, as long as nothing has to be read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from expert_store import ExpertKey, ExpertStore, Prefetcher
from server.kernels.compute_pool import ComputePool
from server.kernels.native.available import availability
from server.model.experts.next_layer_gate import GateInput
from server.model.step import ExpertCost, StepOutput
from server.model.trunk.trunk import Trunk
from tests.checkpoints import make_checkpoint
from tests.expert_store.waiting import wait_until_idle
from tests.server.model.experts.test_prefetch import always_on
from tests.server.model.native_layers.test_native_layers import BLOCK, load
from tests.server.model.test_parity import generate

STEPS = 6
PAUSE = 2e-4  # seconds between evictions; without one, steps may wait for the lock of the store for a minute

pytestmark = pytest.mark.skipif(not availability().runnable, reason="the native kernels were not built")


class Calls:
    """Counts the calls of the kernels that run layers, and those that run experts of one layer."""

    def __init__(self, kernels: Any, monkeypatch: pytest.MonkeyPatch):
        self.layers = self.experts = 0
        monkeypatch.setattr(kernels, "layers", self._counted("layers", kernels.layers))
        monkeypatch.setattr(kernels, "chosen_experts", self._counted("experts", kernels.chosen_experts))

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            setattr(self, name, getattr(self, name) + 1)
            return call(*arguments, **options)

        return counted


@pytest.fixture
def trunk(tmp_path: Path, pool: ComputePool) -> Trunk:
    return load(make_checkpoint("qwen3_moe", tmp_path), pool)


@pytest.fixture
def store(trunk: Trunk) -> Iterator[ExpertStore]:
    """All experts, in memory."""
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    fill(store)
    yield store
    store.close()
    store.check_integrity()


def fill(store: ExpertStore) -> None:
    store.preload(store.absent(), 60)
    wait_until_idle(store)


def decode(trunk: Trunk, store: ExpertStore, prefetcher: Prefetcher | None) -> torch.Tensor:
    """Return the logits of some decodes; the prompts are single tokens, so that each step is one of decodes."""
    found = generate(trunk, store, steps=STEPS, prefetcher=prefetcher, block_size=BLOCK, prompts=[[3], [7], [11]])
    return torch.stack([logits for _, logits in found])


def unused(trunk: Trunk, store: ExpertStore) -> ExpertKey:
    """Return an expert that no step chooses, nor is predicted to by a gate."""
    prefetcher, asked = always_on("gate", trunk, store), set[ExpertKey]()
    assert prefetcher is not None
    observe = prefetcher.observe

    def noted(layer: int, chosen: Any, given: GateInput, keys_of: Any = None) -> None:
        observe(layer, chosen, given, keys_of)
        asked.update(ExpertKey(layer, number) for number in chosen.ravel().tolist())
        if prefetcher._prediction is not None:
            asked.update(prefetcher._prediction.experts)

    prefetcher.observe = noted  # type: ignore[method-assign]
    store.evict([ExpertKey(0, 0)])  # so that the step does not hold all
    decode(trunk, store, prefetcher)
    fill(store)
    return next(key for layer in store.catalog.layers for e in range(8) if (key := ExpertKey(layer, e)) not in asked)


def test_a_predicting_step_is_one_call_while_what_it_asks_for_is_in_memory(
    trunk: Trunk, store: ExpertStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store.evict([unused(trunk, store)])
    calls, prefetcher = Calls(trunk._pool.kernels, monkeypatch), always_on("gate", trunk, store)
    assert prefetcher is not None
    decode(trunk, store, prefetcher)
    assert (calls.layers, calls.experts) == (STEPS, 0)
    assert prefetcher.statistics().predicted["gate"] > 0


def test_a_layer_whose_successor_needs_a_read_leases_its_experts_so_that_the_read_begins(
    trunk: Trunk, store: ExpertStore
) -> None:
    prefetcher = always_on("gate", trunk, store)
    assert prefetcher is not None
    decode(trunk, store, prefetcher)
    predicted = [ExpertKey(1, expert) for expert in range(8)]
    store.evict(predicted)
    decode(trunk, store, prefetcher)
    assert store.statistics().prefetches["used"] + store.statistics().prefetches["late"] > 0


def test_a_step_in_one_call_is_charged_the_bytes_that_were_read_ahead_of_it(
    trunk: Trunk, store: ExpertStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode(trunk, store, None)
    keys = [ExpertKey(1, expert) for expert in range(8)]
    store.evict(keys)
    assert store.prefetch(keys)
    wait_until_idle(store)
    fill(store)  # experts that are read while the disk idles are charged to nobody
    costs, forward = list[ExpertCost](), trunk.forward

    def charged(*arguments: Any, **options: Any) -> StepOutput:
        output = forward(*arguments, **options)
        costs.extend(output.costs)
        return output

    monkeypatch.setattr(trunk, "forward", charged)
    calls = Calls(trunk._pool.kernels, monkeypatch)
    before = store.statistics().prefetches["used"]
    decode(trunk, store, None)
    num_used = store.statistics().prefetches["used"] - before
    assert (calls.layers, calls.experts) == (STEPS, 0)
    num_charged, rest = divmod(sum(cost.bytes_read for cost in costs), trunk.catalog.read_bytes(keys[0]))
    assert (rest, num_charged > 0, num_charged <= num_used) == (0, True, True)


def test_predictions_of_the_kernels_are_those_of_the_gates(trunk: Trunk, store: ExpertStore) -> None:
    prefetcher = always_on("gate", trunk, store)
    assert prefetcher is not None
    compared = 0

    def compare(layer: int, chosen: Any, given: GateInput, keys_of: Any = None) -> None:
        nonlocal compared
        if given.hidden_states is not None and layer in trunk.gates:
            expected = trunk.gates[layer](GateInput(given.hidden_states))
            assert np.array_equal(given.predicted, expected)
            compared += 1

    prefetcher.observe = compare  # type: ignore[method-assign]
    store.evict(ExpertKey(layer, expert) for layer in trunk.catalog.layers for expert in range(8))
    decode(trunk, store, prefetcher)
    assert compared


def test_steps_in_one_call_count_what_steps_by_layer_count(
    trunk: Trunk, store: ExpertStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store.evict([unused(trunk, store)])

    def counted() -> tuple[Any, ...]:
        prefetcher, before = always_on("gate", trunk, store), store.statistics()
        assert prefetcher is not None
        logits, after, found = decode(trunk, store, prefetcher), store.statistics(), prefetcher.statistics()
        lookups, tokens = after.lookups - before.lookups, after.tokens - before.tokens
        return logits.tolist(), lookups, tokens.tolist(), found.predicted, found.correct, prefetcher._num_lookups

    in_one_call = counted()
    monkeypatch.setattr(store, "hold_residents", lambda *_, **__: None)
    assert counted() == in_one_call


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "gpt_oss", "gemma4_text"])
def test_experts_that_others_evict_while_predicting_steps_run_change_no_bit(
    family: str, tmp_path: Path, pool: ComputePool
) -> None:
    trunk = load(make_checkpoint(family, tmp_path), pool)
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    fill(store)
    expected = decode(trunk, store, None)
    for layout in store._state.pools:  # what a slot held is lost at once
        poison_freed_slots(layout)
    ends = threading.Event()
    keys = [ExpertKey(layer, e) for layer, entry in trunk.catalog.layers.items() for e in range(len(entry.experts))]

    def disturb() -> None:
        random, total = np.random.default_rng(0), trunk.catalog.total_bytes
        while not ends.wait(PAUSE):
            store.evict([keys[place] for place in random.integers(len(keys), size=3)])
            store.resize(host_bytes=int(total * random.uniform(0.75, 1.0)))

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        prefetcher = always_on("auto", trunk, store)
        for _ in range(12):
            assert torch.equal(decode(trunk, store, prefetcher), expected)
    finally:
        ends.set()
        thread.join()
        store.close()
    store.check_integrity()


def poison_freed_slots(layout: Any) -> None:
    """Fill each slot of the host tier with NaN when it is freed."""
    slots = layout.host._slots
    free = slots.free

    def poisoned(slot: int) -> None:
        layout.host_arena.tensor_of(slot).fill_(255)
        free(slot)

    slots.free = poisoned
