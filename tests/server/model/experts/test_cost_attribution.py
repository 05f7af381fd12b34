"""The experts and the cost of a step are attributed to the chunks that used them."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from expert_store import ExpertKey, ExpertStore, least_bytes
from server.model.attention.kv_cache import KVCache
from server.model.experts.cost_attribution import RowOwners, attribute_costs, last_choices_of_chunks
from server.model.experts.step_record import LayerRun, ResidentRuns
from server.model.step import ExpertCost, RoutedExperts, SequenceChunk
from server.model.trunk_loader import load_trunk
from tests.checkpoints import make_checkpoint

NUM_EXPERTS, TOP_K, BLOCK_SIZE = 8, 3, 16


def chunks_of(*sizes: int, wants_experts: bool = False) -> list[SequenceChunk]:
    return [SequenceChunk(range(size), 0, [], wants_experts=wants_experts) for size in sizes]


def random_run(rng: random.Random, layer: int, num_rows: int) -> LayerRun:
    """Make a layer where some rows choose no expert, and which may miss nothing."""
    chosen = np.array([rng.sample(range(NUM_EXPERTS + 2), TOP_K) for _ in range(num_rows)]).reshape(-1, TOP_K)
    asked = sorted({int(expert) for expert in chosen.flat if expert < NUM_EXPERTS})
    missed = {expert: 100 + expert for expert in asked if rng.random() < 0.4} if rng.random() < 0.7 else {}
    cost = ExpertCost(len(asked), len(missed), rng.random(), sum(missed.values()))
    remote = [expert for expert in missed if rng.random() < 0.5]
    cost.remote_bytes = sum(missed[expert] for expert in remote)
    return LayerRun(layer, chosen, NUM_EXPERTS, cost, missed, remote=remote)


def experts_of(chosen: RoutedExperts | None) -> list[list[int]]:
    return [] if chosen is None else chosen.tolist()


def asked_by(run: LayerRun, owners: list[int], chunk: int) -> set[int]:
    rows = [row for row, owner in zip(run.chosen.tolist(), owners, strict=True) if owner == chunk]
    return {expert for row in rows for expert in row if expert < NUM_EXPERTS}


@pytest.mark.parametrize("sizes", [(1,), (1, 1, 1, 1), (5,), (4, 1, 7)])
@pytest.mark.parametrize("seed", range(5))
def test_each_looks_up_the_experts_of_its_own_tokens_and_waits_for_all(sizes: tuple[int, ...], seed: int) -> None:
    rng = random.Random(seed)
    runs = [random_run(rng, layer, sum(sizes)) for layer in range(4)]
    owners = [chunk for chunk, size in enumerate(sizes) for _ in range(size)]
    costs = attribute_costs(runs, RowOwners(chunks_of(*sizes)))
    for chunk, cost in enumerate(costs):
        asked = [(run, asked_by(run, owners, chunk)) for run in runs]
        assert cost.num_lookups == sum(len(experts) for _, experts in asked)
        assert cost.stall_seconds == pytest.approx(sum(run.cost.stall_seconds for run in runs))


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (4, 1, 7)])
@pytest.mark.parametrize("seed", range(5))
def test_each_miss_is_charged_to_one_who_used_the_expert(sizes: tuple[int, ...], seed: int) -> None:
    rng = random.Random(seed)
    run, owners = random_run(rng, 0, sum(sizes)), [chunk for chunk, size in enumerate(sizes) for _ in range(size)]
    for place, nbytes in run.missed.items():
        remote = [place] if place in run.remote else []
        costs = attribute_costs([run._replace(missed={place: nbytes}, remote=remote)], RowOwners(chunks_of(*sizes)))
        (payer,) = (chunk for chunk, cost in enumerate(costs) if cost.num_misses)
        assert place in asked_by(run, owners, payer)
        assert (costs[payer].num_misses, costs[payer].bytes_read) == (1, nbytes)
        assert costs[payer].remote_bytes == (nbytes if remote else 0)


def test_requests_that_share_all_experts_pay_by_turns() -> None:
    missed = dict.fromkeys(range(NUM_EXPERTS), 100)
    cost = ExpertCost(NUM_EXPERTS, NUM_EXPERTS, 0.0, 100 * NUM_EXPERTS)
    run = LayerRun(1, np.tile(np.arange(NUM_EXPERTS), (2, 1)), NUM_EXPERTS, cost, missed)
    costs = attribute_costs([run], RowOwners(chunks_of(1, 1)))
    assert costs == [ExpertCost(NUM_EXPERTS, NUM_EXPERTS // 2, 0.0, 100 * NUM_EXPERTS // 2)] * 2


@pytest.mark.parametrize("sizes", [(1,), (1, 1, 1, 1), (4, 1, 7)])
@pytest.mark.parametrize("num_choices", [NUM_EXPERTS, NUM_EXPERTS + 2], ids=["experts", "experts or none"])
def test_layers_that_ran_under_one_hold_cost_what_each_of_them_does(sizes: tuple[int, ...], num_choices: int) -> None:
    rng = np.random.default_rng(0)
    chosen = [rng.permuted(np.tile(np.arange(num_choices), (sum(sizes), 1)), axis=1)[:, :TOP_K] for _ in range(3)]
    rows = np.array([np.bincount(each.ravel(), minlength=num_choices)[:NUM_EXPERTS] for each in chosen])
    held = ResidentRuns([(layer, NUM_EXPERTS) for layer in range(3)], lambda: chosen, 3 * TOP_K, rows)
    owners = RowOwners(chunks_of(*sizes))
    assert attribute_costs([held], owners) == attribute_costs(held.runs, owners)


def test_images_with_experts_of_their_own_are_charged_to_who_shows_them() -> None:
    """Layer 0 has experts for text, layer 1 for images; the first sequence shows two, the second none."""
    are_images = np.array([False, True, True, False, False])
    rows = RowOwners(chunks_of(4, 1, wants_experts=True), are_images, [0])
    of_text = LayerRun(0, np.array([[1, 2], [1, 3], [1, 4]]), 8, ExpertCost(4, 1, 0.5, 7), {4: 7})
    of_images = LayerRun(1, np.array([[5, 6], [6, 7]]), 8, ExpertCost(3, 0, 0.25, 0), {})
    first, second = attribute_costs([of_text, of_images], rows)
    assert first == ExpertCost(3 + 3, 0, 0.75, 0)
    assert second == ExpertCost(2, 1, 0.5, 7)
    assert [experts_of(chosen) for chosen in last_choices_of_chunks([of_text, of_images], rows, [0])] == [
        [[1, 3]],
        [[1, 4]],
    ]


def test_bytes_read_ahead_of_a_layer_are_charged_to_a_chunk_that_uses_the_expert() -> None:
    chunks = [SequenceChunk([1], 0, []), SequenceChunk([2], 0, [])]
    run = LayerRun(0, np.array([[1, 2], [1, 3]]), 8, ExpertCost(3, bytes_read=7), {}, read_ahead={3: 7})
    first, second = attribute_costs([run], RowOwners(chunks))
    assert (first.bytes_read, second.bytes_read, second.num_misses) == (0, 7, 0)


@pytest.mark.slow
def test_a_prompt_is_charged_the_bytes_that_were_read_ahead_of_its_layers(tmp_path: Path) -> None:
    trunk = load_trunk(make_checkpoint("qwen3_moe", tmp_path), torch.float32)
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    num_blocks = [4] * len(trunk.facts.kv_groups)
    kv_cache = KVCache(trunk.facts.kv_groups, num_blocks, BLOCK_SIZE)
    keys = [ExpertKey(layer, expert) for layer in trunk.catalog.layers for expert in range(4)]
    num_ahead = store.prefetch(keys)
    while len(store.residents()) < num_ahead:
        threading.Event().wait(0.001)
    chunk = SequenceChunk([3, 17, 5, 99], 0, [range(4) for _ in num_blocks], num_prompt=4)
    (cost,) = trunk.forward([chunk], kv_cache, store).costs
    num_used = store.statistics().prefetches["used"]
    store.close()
    assert num_used > 0
    assert cost.bytes_read == (cost.num_misses + num_used) * trunk.catalog.read_bytes(keys[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["qwen3_moe", "deepseek_v3", "gpt_oss", "qwen3_next", "deepseek_v4", "switch_transformers", "llama4_text"]
)
def test_a_request_alone_is_charged_what_the_store_counts(name: str, tmp_path: Path) -> None:
    trunk = load_trunk(make_checkpoint(name, tmp_path), torch.float32)
    store = ExpertStore(trunk.catalog, least_bytes(trunk.catalog, trunk.facts.top_k))
    num_blocks = [4] * len(trunk.facts.kv_groups)
    kv_cache, states = KVCache(trunk.facts.kv_groups, num_blocks, BLOCK_SIZE), trunk.new_states(1)
    charged, tokens = ExpertCost(), [3, 17, 5, 99, 40, 23]
    for start, end in ((0, 4), (4, 5), (5, 6)):
        chunk = SequenceChunk(
            tokens[start:end], start, [range(4) for _ in num_blocks], num_prompt=4, wants_experts=end > 4
        )
        output = trunk.forward([chunk], kv_cache, store, states=states)
        (cost,) = output.costs
        charged.add(cost)
        (chosen,) = output.chosen
        assert len(experts_of(chosen)) == (len(trunk.facts.text_layers) if end > 4 else 0)
    statistics = store.statistics()
    assert charged.num_lookups == sum(statistics.lookups.values()) > 0
    assert charged.num_misses == sum(count for (tier, _), count in statistics.lookups.items() if tier == "disk") > 0
    assert charged.bytes_read == statistics.loaded_bytes
    assert charged.stall_seconds == pytest.approx(sum(statistics.stall_seconds.values()))
    store.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3_moe", "granitemoehybrid", "deepseek_v4"])
def test_the_chosen_experts_are_those_of_a_request_alone(name: str, tmp_path: Path) -> None:
    """They are those of the last token: a chunk of two has those of the second token by itself."""
    trunk = load_trunk(make_checkpoint(name, tmp_path), torch.float32)
    store = ExpertStore(trunk.catalog, trunk.catalog.total_bytes)
    num_blocks = [12] * len(trunk.facts.kv_groups)
    tables = [[range(4 * place, 4 * place + 4) for _ in num_blocks] for place in range(3)]
    texts = [[3, 17, 5], [40, 23, 9], [7, 7, 100]]

    def run(places: list[int], sizes: list[int]) -> list[object]:
        kv_cache, states = KVCache(trunk.facts.kv_groups, num_blocks, BLOCK_SIZE), trunk.new_states(3)
        last: dict[int, object] = {}
        for step, size in enumerate(sizes):
            start = sum(sizes[:step])
            chunks = [
                SequenceChunk(
                    texts[place][start : start + size],
                    start,
                    tables[place],
                    slot=place,
                    num_prompt=3,
                    wants_experts=True,
                )
                for place in places
            ]
            output = trunk.forward(chunks, kv_cache, store, states=states)
            last = dict(zip(places, map(experts_of, output.chosen), strict=True))
        return list(last.values())

    alone = [run([place], [3])[0] for place in range(3)]
    assert run([0, 1, 2], [3]) == run([0, 1, 2], [1, 2]) == run([0, 1, 2], [2, 1]) == alone
    assert all(chosen and all(chosen) for chosen in alone)
    store.close()
