"""Groups by working set take turns where that is faster, on a clock and a cache of the test's own."""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import pytest
import torch

from server.engine.block_manager import SequenceBlocks
from server.engine.request import GenerationRequest, SamplingParams, Timeline, TokenStream
from server.engine.request_status import statuses
from server.engine.scheduler import Scheduled
from server.engine.sequence import Sequence
from server.engine.stage import ROUNDS_UNTIL_CHECK, WorkingSetStage
from server.engine.text import TextAssembler
from server.engine.working_set import StepCosts, WorkingSets
from server.model.step import ExpertCost, StepOutput

LAYERS, EXPERTS, TOP_K, SLOTS = 2, 32, 4, 8
TOUCH_SECONDS, MISS_SECONDS, STEP_SECONDS = 0.0002, 0.002, 0.002


@dataclass
class Theatre:
    """Sequences of some domains that decode for ever; each domain has experts of its own."""

    num_domains: int
    num_sequences: int
    miss_seconds: float = MISS_SECONDS
    surcharge: float = 0.0  # seconds that a step of a group takes more, for no reason the stage could know
    now: float = 0.0
    num_tokens: int = 0
    groups: list[list[Sequence]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(0)
        self.caches: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(LAYERS)]
        self.stage = WorkingSetStage(
            WorkingSets(dict.fromkeys(range(LAYERS), EXPERTS)), lambda: np.full(LAYERS, SLOTS), lambda: self.now
        )
        self.sequences = [new_sequence(number) for number in range(self.num_sequences)]

    def domain(self, sequence: Sequence) -> int:
        return sequence.arrival % self.num_domains

    def step(self) -> list[Sequence]:
        chosen = self.stage.choose(self.sequences)
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
        self.stage.note(step, StepOutput(torch.empty(0), routing, cost), seconds)
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
    return Sequence(stream, cast("TextAssembler", None), 0, SequenceBlocks([]), number)


def rate_of_everybody(theatre: Theatre, seconds: float) -> float:
    theatre.stage.choose = lambda sequences: sequences  # type: ignore[method-assign]
    return theatre.run(seconds)


def test_domains_that_do_not_fit_together_take_turns_and_are_faster() -> None:
    theatre, other = Theatre(4, 16), Theatre(4, 16)
    rate = theatre.run(20)
    assert rate > 1.5 * rate_of_everybody(other, 20)
    assert theatre.stage.num_turns > 8
    groups = [group for group in theatre.groups if len(group) < 16]
    assert all(len({theatre.domain(sequence) for sequence in group}) == 1 for group in groups[50:])


def test_who_is_held_is_told_from_who_goes_on() -> None:
    theatre = Theatre(4, 16)
    for sequence in theatre.sequences:
        sequence.append(2)
        sequence.num_cached = 1
    theatre.run(5)
    chosen = theatre.step()
    assert 0 < len(chosen) < 16
    states = [each.state for each in statuses(theatre.sequences, [], theatre.stage.holds, theatre.now)]
    assert states == ["decode" if sequence in chosen else "held" for sequence in theatre.sequences]


def test_everybody_has_turns_alike() -> None:
    theatre = Theatre(4, 16)
    theatre.run(30)
    counts = [sum(sequence in group for group in theatre.groups) for sequence in theatre.sequences]
    assert min(counts) > 0.5 * max(counts)


@pytest.mark.parametrize("num_domains", [1, 2])
def test_whose_experts_are_everybodys_go_on_together(num_domains: int) -> None:
    """Sixteen sequences touch nearly all experts of one or two domains anyway; sharing them is best."""
    theatre = Theatre(num_domains, 16, miss_seconds=0.0002)
    theatre.run(8)
    assert all(len(group) == 16 for group in theatre.groups)


def test_a_single_sequence_is_never_held() -> None:
    theatre = Theatre(4, 1)
    theatre.run(10)
    assert all(len(group) == 1 for group in theatre.groups)


def test_turns_that_do_not_pay_end_and_are_tried_less_and_less() -> None:
    theatre = Theatre(4, 16, surcharge=0.2)
    theatre.run(60)
    turns = theatre.stage.num_turns
    assert turns > 0
    theatre.run(60)
    assert theatre.stage.num_turns - turns < turns
    assert sum(len(group) == 16 for group in theatre.groups[-200:]) > 100


def test_now_and_then_everybody_is_on_stage_to_compare() -> None:
    theatre = Theatre(4, 16)
    theatre.run(8)
    while len(theatre.groups[-1]) == 16:
        theatre.step()
    first = len(theatre.groups)
    theatre.run(2.5 * ROUNDS_UNTIL_CHECK)
    sizes = [len(group) for group in theatre.groups[first:]]
    checks = [index for index, size in enumerate(sizes) if size == 16]
    assert checks
    assert any(size < 16 for size in sizes[checks[-1] :]) or any(size < 16 for size in sizes[: checks[0]])


def test_new_requests_begin_between_turns_only_and_are_then_considered() -> None:
    theatre = Theatre(4, 16)
    while not theatre.stage.num_turns:
        theatre.step()
        assert theatre.stage.admits or theatre.stage.num_turns
    theatre.step()
    assert not theatre.stage.admits
    newcomer = new_sequence(16)
    theatre.sequences.append(newcomer)
    theatre.run(8)
    assert any(newcomer in group for group in theatre.groups)


def test_a_turn_ends_when_most_of_its_group_has_ended() -> None:
    theatre = Theatre(4, 16)
    while not theatre.stage.num_turns:
        group = theatre.step()
    for sequence in group[: len(group) // 2 + 1]:
        theatre.sequences.remove(sequence)
    assert theatre.domain(theatre.step()[0]) != theatre.domain(group[0])


def test_nothing_is_learned_while_all_experts_are_in_memory() -> None:
    theatre = Theatre(1, 2)
    theatre.caches = [OrderedDict.fromkeys(range(EXPERTS)) for _ in range(LAYERS)]
    theatre.stage.note(
        [Scheduled(theatre.sequences[0], 1)], StepOutput(torch.empty(0), {}, ExpertCost(num_lookups=8)), 0.01
    )
    assert theatre.sequences[0].expert_use is None


def test_layers_may_choose_different_numbers_and_none_at_all() -> None:
    theatre = Theatre(1, 1)
    none = EXPERTS  # some models route to no expert
    routing = {0: np.array([[1, 2, 3]]), 1: np.array([[5, none]])}
    theatre.stage.note(
        [Scheduled(theatre.sequences[0], 1)], StepOutput(torch.empty(0), routing, ExpertCost(4, 4, 0.1)), 0.2
    )
    use = theatre.sequences[0].expert_use
    assert use is not None
    assert np.flatnonzero(use.counts[0]).tolist() == [1, 2, 3]
    assert np.flatnonzero(use.counts[1]).tolist() == [5]


def test_expected_experts_are_those_of_independent_choices() -> None:
    sets = WorkingSets({0: 4})
    chances = np.array([[[0.5, 0.5, 0, 0]], [[0.5, 0, 0.25, 0]]], dtype=np.float32)
    touched, missed = sets.expected(chances, np.array([1]))
    np.testing.assert_allclose(touched, [1.0, 0.75 + 0.5 + 0.25], rtol=1e-5)
    np.testing.assert_allclose(missed, [0.5, 0.75], rtol=1e-5)


def test_costs_are_found_from_steps() -> None:
    costs = StepCosts()
    for touched, missed in [(10, 2), (40, 9), (25, 0), (60, 30), (33, 5)] * 20:
        costs.add(0.05 + 0.002 * touched + 0.004 * missed, 0.004 * missed, touched, missed)
    seconds = costs.seconds(np.array([20.0, 50.0], np.float32), np.array([3.0, 0.0], np.float32))
    np.testing.assert_allclose(seconds, [0.05 + 0.04 + 0.012, 0.05 + 0.1], rtol=1e-3)


def test_a_step_that_does_not_run_every_layer_counts_for_nothing() -> None:
    """As one of images that go to experts of their own, or of a prompt that an encoder wants whole."""
    theatre = Theatre(1, 1)
    step, cost = [Scheduled(theatre.sequences[0], 1)], ExpertCost(4, 4, 0.01)
    for routing in ({}, {1: np.array([[3, 5, 5, 7]])}):
        theatre.stage.note(step, StepOutput(torch.empty(0), routing, cost), 0.02)
        assert theatre.sequences[0].expert_use is None
    routing = dict.fromkeys(range(LAYERS), np.array([[3, 5, 5, 7]]))
    theatre.stage.note(step, StepOutput(torch.empty(0), routing, cost), 0.02)
    use = theatre.sequences[0].expert_use
    assert use is not None
    assert np.flatnonzero(use.counts[1]).tolist() == [3, 5, 7]
