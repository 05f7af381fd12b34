"""Estimates of what prompts take by chunks and as passes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from expert_store import ExpertKey, ExpertStore
from server.engine.expected_reads import ExpectedReads
from server.engine.prompt_costs import PromptCosts, PromptRates
from server.model.trunk_loader import load_trunk
from tests.checkpoints import make_checkpoint

STEP = 512


def all_experts(num_tokens: int) -> float:
    """Return the bytes that a step reads if it needs all experts that are not in memory."""
    return 1e9 if num_tokens else 0.0


def made_costs(missing_share: float = 0.6) -> PromptCosts:
    return PromptCosts(all_experts, lambda: missing_share)


def rates(token_seconds: float, byte_seconds: float, decode_seconds: float = 0.0) -> PromptRates:
    return PromptRates(token_seconds, byte_seconds, byte_seconds, decode_seconds, all_experts)


SLOW_DISK = rates(0.001, 10e-9)  # a step reads for 10 s
SLOW_PROCESSOR = rates(0.1, 0.01e-9)


def test_a_prompt_of_several_steps_is_sooner_by_a_pass_if_reading_takes_long() -> None:
    assert SLOW_DISK.prefers_pass([4096], STEP)


def test_a_prompt_of_several_steps_runs_by_chunks_if_the_disk_is_fast_beside_the_processor() -> None:
    assert not SLOW_PROCESSOR.prefers_pass([4096], STEP)


@pytest.mark.parametrize("by", [SLOW_DISK, SLOW_PROCESSOR])
def test_prompts_of_one_step_run_by_chunks_as_a_pass_reads_the_same_bytes(by: PromptRates) -> None:
    assert not by.prefers_pass([200, 300], STEP)


def test_prompts_share_a_pass_if_reading_takes_long() -> None:
    assert SLOW_DISK.num_joining([1000] * 8) == 8


def test_prompts_run_one_after_another_if_computing_takes_long() -> None:
    assert SLOW_PROCESSOR.num_joining([1000] * 8) == 1


def test_a_long_prompt_does_not_join_short_ones_that_it_would_delay() -> None:
    assert rates(0.01, 1e-9).num_joining([100, 100, 4000]) == 2


def test_a_short_prompt_runs_beside_a_pass_that_has_much_left() -> None:
    assert SLOW_PROCESSOR.prefers_step(40, num_left=4000, num_delayed=1)


def test_a_short_prompt_waits_for_the_next_pass_if_this_one_ends_soon() -> None:
    assert not SLOW_PROCESSOR.prefers_step(40, num_left=30, num_delayed=1)


def test_a_short_prompt_waits_if_its_reads_would_delay_many() -> None:
    assert not SLOW_DISK.prefers_step(40, num_left=4000, num_delayed=8)


def test_nothing_is_known_before_a_prompt_has_run() -> None:
    costs = made_costs()
    costs.note_decode(0.1)
    costs.note_chunks(8, 1.0, 0.5)  # too few tokens to tell
    assert costs.rates is None


def test_computing_and_waiting_of_a_step_are_told_apart() -> None:
    costs = made_costs()
    costs.note_chunks(100, 3.0, 2.0)
    found = costs.rates
    assert found is not None
    assert (found.token_seconds, found.byte_seconds) == pytest.approx((0.01, 2e-9))


def test_waits_of_a_pass_are_told_from_waits_of_steps() -> None:
    costs = made_costs()
    costs.note_chunks(100, 3.0, 2.0)
    costs.note_pass(8000, 161.0, 1.0)
    found = costs.rates
    assert found is not None
    assert found.token_seconds == pytest.approx(0.02, rel=0.01)
    assert (found.byte_seconds, found.pass_byte_seconds) == pytest.approx((2e-9, 1e-9))


def test_a_prompt_of_one_step_runs_as_a_pass_if_compute_waits_less_in_passes() -> None:
    assert replace(SLOW_DISK, pass_byte_seconds=7e-9).prefers_pass([64], STEP)


def test_a_pass_is_tried_where_reading_takes_long() -> None:
    costs = made_costs()
    costs.note_chunks(100, 11.0, 10.0)
    found = costs.rates
    assert found is not None
    assert found.prefers_pass([100], STEP)


def test_after_a_pass_steps_are_expected_to_wait_longer_for_each_byte() -> None:
    costs = made_costs()
    costs.note_pass(100, 8.0, 7.0)
    found = costs.rates
    assert found is not None
    assert (found.byte_seconds, found.pass_byte_seconds) == pytest.approx((10e-9, 7e-9))


@pytest.mark.parametrize(("missing_share", "most"), [(1.0, True), (0.6, True), (0.4, False)])
def test_a_prompt_misses_most_of_its_experts_if_most_are_not_in_memory(missing_share: float, *, most: bool) -> None:
    assert made_costs(missing_share).misses_most == most


def test_recent_steps_count_more() -> None:
    costs = made_costs()
    for seconds in (*[1.0] * 20, *[2.0] * 20):
        costs.note_decode(seconds)
        costs.note_chunks(100, seconds, 0.0)
    found = costs.rates
    assert found is not None
    assert (found.decode_seconds, found.token_seconds) == pytest.approx((2.0, 0.02), rel=0.02)


@pytest.mark.parametrize(("num_tokens", "used"), [(1, 2 / 8), (10_000, 1.0)])  # a token uses two of eight
def test_tokens_are_expected_to_read_what_they_use_and_is_not_in_memory(
    num_tokens: int, used: float, tmp_path: Path
) -> None:
    catalog = load_trunk(make_checkpoint("qwen3_moe", tmp_path), torch.float32).catalog
    every = [
        ExpertKey(layer, expert) for layer, entry in catalog.layers.items() for expert in range(len(entry.experts))
    ]
    with_half = ExpertStore(catalog, catalog.total_bytes // 2)
    reads, num_bytes = ExpectedReads(with_half, 2), sum(map(catalog.read_bytes, every))
    assert (reads(num_tokens), reads.missing_share()) == pytest.approx((used * num_bytes, 1.0))
    for layer in catalog.layers:
        with with_half.lease({key: 1 for key in every if key.layer == layer}) as lease:
            assert list(lease.batches())
    found = reads(num_tokens), reads.missing_share()
    with_half.close()
    assert found == pytest.approx((used * num_bytes / 2, 0.5))
