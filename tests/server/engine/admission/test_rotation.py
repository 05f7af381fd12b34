"""Rotation of decode groups, on a simulated clock and expert cache."""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import pytest
import torch

from server.engine.admission.benefit import ROUNDS_BETWEEN_COMPARISONS
from server.engine.admission.planner import GroupPlanner
from server.engine.admission.rotation import DecodeGroupRotation
from server.engine.admission.working_set import WorkingSets
from server.engine.interface import GenerationRequest, SamplingParams, Timeline, TokenStream
from server.engine.kv.block_manager import SequenceBlocks
from server.engine.scheduler import Scheduled
from server.engine.sequence import Sequence
from server.engine.status_snapshot import snapshot_statuses
from server.engine.text.stop_strings import TextAssembler
from server.model.step import ExpertCost, StepOutput

LAYERS, EXPERTS, TOP_K, SLOTS = 2, 32, 4, 8
TOUCH_SECONDS, MISS_SECONDS, STEP_SECONDS = 0.0002, 0.002, 0.002


@dataclass
class DecodingBatch:
    """Endlessly decoding sequences of several domains; each domain has its own experts."""

    num_domains: int
    num_sequences: int
    miss_seconds: float = MISS_SECONDS
    surcharge: float = 0.0  # seconds that a step of a group takes more, for no reason that the planner could know
    now: float = 0.0
    num_tokens: int = 0
    groups: list[list[Sequence]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(0)
        self.caches: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(LAYERS)]
        self.admission = DecodeGroupRotation(
            GroupPlanner(WorkingSets(dict.fromkeys(range(LAYERS), EXPERTS)), lambda: np.full(LAYERS, SLOTS)),
            lambda: self.now,
        )
        self.sequences = [new_sequence(number) for number in range(self.num_sequences)]

    def domain(self, sequence: Sequence) -> int:
        return sequence.arrival % self.num_domains

    def step(self) -> list[Sequence]:
        chosen = self.admission.select(self.sequences)
        self.groups.append(chosen)
        size = EXPERTS // self.num_domains
        routing = {
            layer: np.array(
                [
                    [self.domain(sequence) * size + expert for expert in self.random.sample(range(size), TOP_K)]
                    for sequence in chosen
                ]
            )
            for layer in range(LAYERS)
        }
        cost = ExpertCost()
        for layer, cache in enumerate(self.caches):
            for expert in {int(expert) for expert in routing[layer].flat}:
                cost.num_lookups += 1
                cost.num_misses += expert not in cache
                cache[expert] = None
                cache.move_to_end(expert)
                if len(cache) > SLOTS:
                    cache.popitem(last=False)
        cost.stall_seconds = cost.num_misses * self.miss_seconds
        seconds = STEP_SECONDS + cost.num_lookups * TOUCH_SECONDS + cost.stall_seconds
        seconds += self.surcharge if len(chosen) < len(self.sequences) else 0
        self.now += seconds
        self.num_tokens += len(chosen)
        step = [Scheduled(sequence, 1) for sequence in chosen]
        self.admission.record_step(step, StepOutput(torch.empty(0), routing, cost), seconds)
        return chosen

    def run(self, seconds: float) -> float:
        """Tokens a second."""
        before, until = self.num_tokens, self.now + seconds
        while self.now < until:
            self.step()
        return (self.num_tokens - before) / seconds


def new_sequence(number: int) -> Sequence:
    request = GenerationRequest(str(number), (1,), SamplingParams(100))
    stream = TokenStream(request, cast("asyncio.AbstractEventLoop", None), Timeline(0.0))
    return Sequence(request, stream, cast("TextAssembler", None), 0, SequenceBlocks([]), number)


def joint_rate(batch: DecodingBatch, seconds: float) -> float:
    batch.admission.select = lambda sequences: sequences  # type: ignore[method-assign]
    return batch.run(seconds)


@pytest.mark.slow
def test_domains_that_do_not_fit_together_alternate_and_are_faster() -> None:
    batch, other = DecodingBatch(4, 16), DecodingBatch(4, 16)
    rate = batch.run(20)
    assert rate > 1.5 * joint_rate(other, 20)
    assert batch.admission.num_slices > 8
    groups = [group for group in batch.groups if len(group) < 16]
    assert all(len({batch.domain(sequence) for sequence in group}) == 1 for group in groups[50:])


def test_status_of_sequences_outside_the_group_is_held() -> None:
    batch = DecodingBatch(4, 16)
    for sequence in batch.sequences:
        sequence.append(2)
        sequence.num_cached = 1
    batch.run(5)
    chosen = batch.step()
    assert 0 < len(chosen) < 16
    states = [each.state for each in snapshot_statuses(batch.sequences, [], batch.admission.is_held, batch.now)]
    assert states == ["decode" if sequence in chosen else "held" for sequence in batch.sequences]


@pytest.mark.slow
def test_all_sequences_get_similar_numbers_of_slices() -> None:
    batch = DecodingBatch(4, 16)
    batch.run(30)
    counts = [sum(sequence in group for group in batch.groups) for sequence in batch.sequences]
    assert min(counts) > 0.5 * max(counts)


@pytest.mark.slow
@pytest.mark.parametrize("num_domains", [1, 2])
def test_sequences_that_share_experts_are_not_grouped(num_domains: int) -> None:
    """Sixteen sequences touch nearly all experts of one or two domains anyway; sharing them is best."""
    batch = DecodingBatch(num_domains, 16, miss_seconds=0.0002)
    batch.run(8)
    assert all(len(group) == 16 for group in batch.groups)


def test_a_single_sequence_is_never_held() -> None:
    batch = DecodingBatch(4, 1)
    batch.run(10)
    assert all(len(group) == 1 for group in batch.groups)


@pytest.mark.slow
def test_grouping_that_does_not_pay_stops_and_is_retried_ever_less_often() -> None:
    batch = DecodingBatch(4, 16, surcharge=0.2)
    batch.run(60)
    slices = batch.admission.num_slices
    assert slices > 0
    batch.run(60)
    assert batch.admission.num_slices - slices < slices
    assert sum(len(group) == 16 for group in batch.groups[-200:]) > 100


def test_a_first_slice_that_is_much_slower_than_all_together_is_the_last_of_its_round() -> None:
    batch = DecodingBatch(4, 16, surcharge=0.2)
    while not batch.admission.num_slices:
        batch.step()
    while len(batch.step()) < 16:
        assert batch.admission.num_slices == 1


@pytest.mark.slow
def test_all_sequences_decode_together_now_and_then_to_compare() -> None:
    batch = DecodingBatch(4, 16)
    batch.run(8)
    while len(batch.groups[-1]) == 16:
        batch.step()
    first = len(batch.groups)
    batch.run(2.5 * ROUNDS_BETWEEN_COMPARISONS)
    sizes = [len(group) for group in batch.groups[first:]]
    checks = [index for index, size in enumerate(sizes) if size == 16]
    assert checks
    assert any(size < 16 for size in sizes[checks[-1] :]) or any(size < 16 for size in sizes[: checks[0]])


@pytest.mark.slow
def test_new_requests_begin_only_between_slices() -> None:
    batch = DecodingBatch(4, 16)
    while not batch.admission.num_slices:
        batch.step()
        assert batch.admission.admits_new or batch.admission.num_slices
    batch.step()
    assert not batch.admission.admits_new
    newcomer = new_sequence(16)
    batch.sequences.append(newcomer)
    batch.run(8)
    assert any(newcomer in group for group in batch.groups)


def test_a_slice_ends_when_most_of_its_group_has_ended() -> None:
    batch = DecodingBatch(4, 16)
    while not batch.admission.num_slices:
        group = batch.step()
    for sequence in group[: len(group) // 2 + 1]:
        batch.sequences.remove(sequence)
    assert batch.domain(batch.step()[0]) != batch.domain(group[0])


def test_no_expert_use_is_recorded_while_all_experts_are_in_memory() -> None:
    batch = DecodingBatch(1, 2)
    batch.caches = [OrderedDict.fromkeys(range(EXPERTS)) for _ in range(LAYERS)]
    batch.admission.record_step(
        [Scheduled(batch.sequences[0], 1)], StepOutput(torch.empty(0), {}, ExpertCost(num_lookups=8)), 0.01
    )
    assert batch.sequences[0].expert_use is None


def test_layers_may_choose_different_numbers_of_experts_or_none() -> None:
    batch = DecodingBatch(1, 1)
    none = EXPERTS  # some models route to no expert
    routing = {0: np.array([[1, 2, 3]]), 1: np.array([[5, none]])}
    batch.admission.record_step(
        [Scheduled(batch.sequences[0], 1)], StepOutput(torch.empty(0), routing, ExpertCost(4, 4, 0.1)), 0.2
    )
    use = batch.sequences[0].expert_use
    assert use is not None
    assert np.flatnonzero(use.counts[0]).tolist() == [1, 2, 3]
    assert np.flatnonzero(use.counts[1]).tolist() == [5]


def test_a_step_that_does_not_run_every_layer_is_ignored() -> None:
    """Such a step has images with their own experts, or part of a prompt for an encoder."""
    batch = DecodingBatch(1, 1)
    step, cost = [Scheduled(batch.sequences[0], 1)], ExpertCost(4, 4, 0.01)
    for routing in ({}, {1: np.array([[3, 5, 5, 7]])}):
        batch.admission.record_step(step, StepOutput(torch.empty(0), routing, cost), 0.02)
        assert batch.sequences[0].expert_use is None
    routing = dict.fromkeys(range(LAYERS), np.array([[3, 5, 5, 7]]))
    batch.admission.record_step(step, StepOutput(torch.empty(0), routing, cost), 0.02)
    use = batch.sequences[0].expert_use
    assert use is not None
    assert np.flatnonzero(use.counts[1]).tolist() == [3, 5, 7]
