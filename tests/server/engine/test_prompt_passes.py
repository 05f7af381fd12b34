"""Passes of prompts over a fake model: the steps of a pass, and units between the steps of others."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

from server.engine.interface import TokenLogprobs
from server.engine.kv.block_manager import BlockGroup
from server.engine.pass_planning import PassLimits
from server.engine.prompt_costs import PromptCosts, PromptRates
from server.engine.step_limits import MAX_LOGITS_ROWS
from tests.server.engine.fakes import FakePass, Rig, collect, collect_together, continuation, run

LIMITS = PassLimits(max_tokens=256, step_tokens=32)
LONG = bytes(range(65, 65 + 100))


def sizes(one: FakePass) -> list[list[int]]:
    return [[chunk.num_tokens for chunk in step] for step in one.steps]


def text_of(rig: Rig, prompt: bytes, num_tokens: int, **sampling: int) -> str:
    async def scenario() -> str:
        return await collect(rig.submit(prompt, num_tokens, **sampling))

    text: str = run(rig, scenario)
    return text


def texts_of_waiting(rig: Rig, *requests: tuple[bytes, int]) -> list[str]:
    """Return the texts of requests that wait before the engine starts."""

    async def scenario() -> list[str]:
        rig.engine._submissions.open()
        streams = [rig.submit(*request) for request in requests]
        rig.engine.start()
        try:
            return await asyncio.wait_for(asyncio.gather(*map(collect, streams)), 60)
        finally:
            await asyncio.to_thread(rig.engine.stop)

    texts = asyncio.run(scenario())
    rig.blocks.check_integrity([])
    return texts


def test_a_long_prompt_runs_as_one_pass() -> None:
    rig = Rig(passes=LIMITS)
    assert text_of(rig, LONG, 8) == continuation(LONG, 8)
    assert [sizes(one) for one in rig.model.passes] == [[[32], [32], [32], [4]]]
    assert all(step == [1] for step in rig.model.steps)
    statistics = rig.engine.statistics
    assert (statistics.prefill_passes, statistics.prompt_tokens) == (1, 100)
    assert statistics.prefill_pass_saved_bytes == 1 << 20  # the model's estimate
    assert statistics.steps == {"prefill": 4, "decode": 7}


def test_usage_of_a_pass_is_that_of_its_steps() -> None:
    usages = []
    for rig in (Rig(passes=LIMITS), Rig()):

        async def last_usage(rig: Rig = rig) -> Any:
            return [event async for event in rig.submit(LONG, 2)][-1].expert_usage

        usages.append(run(rig, last_usage))
    assert usages[0].num_passes == 1
    assert replace(usages[0], num_passes=0) == usages[1]


def test_a_prompt_longer_than_a_pass_runs_as_several() -> None:
    rig, prompt = Rig(passes=PassLimits(max_tokens=64, step_tokens=32)), LONG + b"y" * 50
    assert text_of(rig, prompt, 8) == continuation(prompt, 8)
    assert [sizes(one) for one in rig.model.passes] == [[[32], [32]], [[32], [32]]]
    assert rig.model.steps[0] == [22]  # less than a pass is worth


def test_a_prompt_of_the_full_context_runs_as_a_pass() -> None:
    rig, prompt = Rig(num_blocks=32, passes=LIMITS), bytes(range(127))
    assert text_of(rig, prompt, 1) == continuation(prompt, 1)
    assert [sizes(one) for one in rig.model.passes] == [[[32], [32], [32], [31]]]


def test_a_prompt_with_a_window_runs_as_a_pass() -> None:
    rig = Rig(passes=LIMITS, window_groups=(BlockGroup(64, window=9), BlockGroup(64, window=16, is_chunked=True)))
    assert text_of(rig, LONG, 8) == continuation(LONG, 8)
    assert len(rig.model.passes) == 1


def test_a_pass_with_a_window_is_no_shorter_where_the_blocks_of_a_window_and_a_step_are_all_there_are() -> None:
    rig, prompt = Rig(passes=LIMITS, window_groups=(BlockGroup(-(-(9 + 32) // 4) + 1, window=9),)), LONG + b"end" * 20
    assert text_of(rig, prompt, 8) == continuation(prompt, 8)
    assert [sizes(one) for one in rig.model.passes] == [[[32], [32], [32], [32], [32]]]


def test_prompts_that_begin_alike_give_their_texts_where_blocks_of_a_window_are_few() -> None:
    groups = (BlockGroup(30, window=9), BlockGroup(34, window=16, is_chunked=True))
    rig, requests = Rig(passes=LIMITS, window_groups=groups), [(LONG + b"x" * length, 12) for length in (0, 40, 80, 8)]

    async def scenario() -> list[str]:
        first = await collect(rig.submit(*requests[0]))
        return [first, *await collect_together(rig, *requests[1:])]

    assert run(rig, scenario) == [continuation(*request) for request in requests]


def test_prompts_that_wait_together_share_a_pass() -> None:
    rig, prompts = Rig(passes=LIMITS), [bytes([65 + i]) * 40 for i in range(4)]
    assert texts_of_waiting(rig, *[(prompt, 8) for prompt in prompts]) == [continuation(one, 8) for one in prompts]
    assert [sizes(one) for one in rig.model.passes] == [[[32], [8, 24], [16, 16], [24, 8], [32]]]


def test_many_prompts_at_once_run_in_passes() -> None:
    rig, prompts = Rig(num_blocks=400, max_running=16, passes=LIMITS), [bytes([65 + i]) * (20 + i) for i in range(64)]
    assert texts_of_waiting(rig, *[(prompt, 3) for prompt in prompts]) == [continuation(one, 3) for one in prompts]
    assert 4 <= len(rig.model.passes) < 20


def test_a_prompt_that_begins_alike_waits_for_the_pass_and_reuses_its_blocks() -> None:
    rig, prompts = Rig(passes=LIMITS), [LONG + b"one" * 15, LONG + b"two" * 15]
    assert texts_of_waiting(rig, *[(prompt, 4) for prompt in prompts]) == [continuation(one, 4) for one in prompts]
    assert rig.engine.statistics.prefix_cache_hits == 100
    assert rig.engine.statistics.prompt_tokens == 145 + 45


def test_a_pass_with_states_leaves_snapshots_at_the_ends_of_its_steps() -> None:
    rig = Rig(passes=PassLimits(max_tokens=256, step_tokens=64), max_batched_tokens=64, num_snapshots=4)
    prompt = bytes(range(200))

    async def scenario() -> list[str]:
        requests = [(prompt, 4), (prompt[:130] + b"another end of the same begin..", 4), (prompt, 4)]
        return [await collect(rig.submit(*request)) for request in requests]

    texts = run(rig, scenario)
    assert texts[0] == texts[2] == continuation(prompt, 4)
    assert rig.engine.statistics.prefix_cache_hits == 128 + 192
    assert [sizes(one) for one in rig.model.passes] == [[[64], [64], [64], [8]]]


def test_decodes_and_short_prompts_go_on_between_units(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = count(step=1000)  # each unit takes longer than a step
    monkeypatch.setattr("server.engine.prompt_passes.time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    rig, seen = Rig(passes=LIMITS), list[int]()  # decode steps before each unit
    rig.model.before_step = lambda: time.sleep(0.002)  # the long prompt comes before the first one's end

    async def scenario() -> list[str]:
        first = asyncio.create_task(collect(rig.submit(b"first", 60)))
        while not rig.model.steps:
            await asyncio.sleep(0)
        loop, submitted, short = asyncio.get_running_loop(), threading.Event(), list[asyncio.Task[str]]()

        def submit() -> None:
            short.append(loop.create_task(collect(rig.submit(b"short", 2))))
            loop.call_soon(loop.call_soon, submitted.set)

        def note() -> None:
            seen.append(len(rig.model.steps))
            if len(seen) == 2:
                loop.call_soon_threadsafe(submit)
                assert submitted.wait(30)

        rig.model.before_unit = note
        return [await collect(rig.submit(LONG, 4)), await first, *await asyncio.gather(*short)]

    assert run(rig, scenario) == [continuation(LONG, 4), continuation(b"first", 60), continuation(b"short", 2)]
    assert len(rig.model.passes) == 1
    assert len(seen) == 2 * 5
    assert seen == list(range(seen[0], seen[0] + 10))
    assert any(5 in step for step in rig.model.steps[1:])  # the short prompt


def test_a_short_prompt_beside_a_decode_is_a_pass_so_that_it_delays_no_token() -> None:
    rig = Rig(passes=LIMITS)

    async def scenario() -> list[str]:
        first = aiter(rig.submit(b"first", 60))
        begun = (await anext(first)).text
        return [await collect(rig.submit(b"p" * 32, 4)), begun + "".join([event.text async for event in first])]

    assert run(rig, scenario) == [continuation(b"p" * 32, 4), continuation(b"first", 60)]
    assert [sizes(one) for one in rig.model.passes] == [[[32]]]


def measured(
    monkeypatch: pytest.MonkeyPatch, token_seconds: float, byte_seconds: float, decode_seconds: float = 0.0
) -> None:
    """Let the rates of processor and disk be measured so, where each step reads the same experts of a megabyte."""

    def expected_bytes(num_tokens: int) -> float:
        return 1e6 * (num_tokens > 0)

    rates = PromptRates(token_seconds, byte_seconds, byte_seconds, decode_seconds, expected_bytes)
    monkeypatch.setattr(PromptCosts, "rates", rates)


@pytest.mark.parametrize(("missing_share", "num_passes"), [(0.6, 1), (0.4, 0)])
def test_a_first_prompt_of_one_step_is_a_pass_if_most_experts_are_not_in_memory(
    missing_share: float, num_passes: int
) -> None:
    rig = Rig(passes=LIMITS)
    rig.model.part_missing = missing_share
    assert text_of(rig, b"p" * 32, 4) == continuation(b"p" * 32, 4)
    assert len(rig.model.passes) == num_passes


@pytest.mark.parametrize(("byte_seconds", "num_passes"), [(1e-6, 1), (0.0, 0)], ids=["slow disk", "fast disk"])
def test_a_long_prompt_is_a_pass_only_if_it_is_sooner_so(
    byte_seconds: float, num_passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(monkeypatch, 0.001, byte_seconds)
    rig = Rig(passes=LIMITS)
    assert text_of(rig, LONG, 4) == continuation(LONG, 4)
    assert len(rig.model.passes) == num_passes


def test_long_prompts_that_would_delay_each_other_have_a_pass_each(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, 0.01, 0.1e-6)  # a step computes for 0.32 s and reads for 0.1 s
    rig, prompts = Rig(num_blocks=200, passes=LIMITS), [LONG, LONG[::-1]]
    assert texts_of_waiting(rig, *[(prompt, 4) for prompt in prompts]) == [continuation(one, 4) for one in prompts]
    assert [sizes(one) for one in rig.model.passes] == [[[32], [32], [32], [4]]] * 2


@pytest.mark.parametrize(("decode_seconds", "num_passes"), [(0.3, 1), (0.4, 0)], ids=["longer", "no longer"])
def test_a_prompt_beside_a_decode_is_a_pass_if_its_step_takes_longer(
    decode_seconds: float, num_passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(monkeypatch, 0.01, 0.0, decode_seconds)
    rig = Rig(num_blocks=200, passes=LIMITS)

    async def scenario() -> list[str]:
        first = aiter(rig.submit(b"first", 400))
        begun = (await anext(first)).text
        return [await collect(rig.submit(b"p" * 32, 4)), begun + "".join([event.text async for event in first])]

    assert run(rig, scenario) == [continuation(b"p" * 32, 4), continuation(b"first", 400)]
    assert len(rig.model.passes) == num_passes


@pytest.mark.parametrize(("unit", "is_beside"), [(0, True), (9, False)], ids=["early", "late"])
def test_a_prompt_that_comes_during_a_pass_runs_beside_it_if_much_is_left(
    unit: int,
    is_beside: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured(monkeypatch, 0.01, 0.1e-6)
    rig, left, run_before = Rig(passes=LIMITS), [unit], list[int]()  # units before its step

    async def scenario() -> list[str]:
        loop, submitted, later = asyncio.get_running_loop(), threading.Event(), list[asyncio.Task[str]]()

        def submit() -> None:
            later.append(loop.create_task(collect(rig.submit(b"p" * 32, 1))))
            loop.call_soon(loop.call_soon, submitted.set)

        def count_down() -> None:
            left[0] -= 1
            if left[0] == -1:
                loop.call_soon_threadsafe(submit)
                assert submitted.wait(30)

        rig.model.before_unit = count_down
        rig.model.before_step = lambda: run_before.append(unit - left[0])
        return [await collect(rig.submit(LONG, 1)), *await asyncio.gather(*later)]

    assert run(rig, scenario) == [continuation(LONG, 1), continuation(b"p" * 32, 1)]
    assert [number < 10 for number in run_before] == [is_beside]


@pytest.mark.parametrize(("step_seconds", "is_beside"), [(0.0, False), (0.02, True)])
def test_units_wait_for_experts_as_long_as_a_step_of_others_takes(step_seconds: float, is_beside: bool) -> None:
    rig = Rig(passes=LIMITS)
    rig.model.seconds_to_experts = 0.01
    rig.model.before_step = lambda: time.sleep(step_seconds)
    num_units = [0]

    def count() -> None:
        num_units[0] += 1

    async def scenario() -> int:
        first = asyncio.create_task(collect(rig.submit(b"first", 20)))
        while not rig.model.steps:
            await asyncio.sleep(0)
        second = asyncio.create_task(collect(rig.submit(LONG, 4)))
        rig.model.before_unit = count
        await first
        units_beside = num_units[0]
        assert await second == continuation(LONG, 4)
        return units_beside

    assert (run(rig, scenario) > 2) == is_beside


@pytest.mark.parametrize("is_own_step", [True, False])
def test_a_pass_gives_experts_back_to_steps_of_its_engine_alone(*, is_own_step: bool) -> None:
    """A lease of another thread may come while a unit of the pass runs."""
    rig, given_back = Rig(passes=LIMITS), list[bool]()

    def starve() -> None:
        time.sleep(0.002)  # the long prompt comes before the first one's end
        if rig.model.passes and not given_back:
            rig.model.can_pass = False
            if is_own_step:
                rig.model.starve()
            else:
                other = threading.Thread(target=rig.model.starve)
                other.start()
                other.join()
            given_back.append(rig.model.passes[0].is_cancelled)

    async def scenario() -> list[str]:
        first = asyncio.create_task(collect(rig.submit(b"first", 60)))
        rig.model.before_step = starve
        while not rig.model.steps:
            await asyncio.sleep(0)
        return [await collect(rig.submit(LONG, 4)), await first]

    assert run(rig, scenario) == [continuation(LONG, 4), continuation(b"first", 60)]
    assert given_back == [is_own_step]


def test_prompts_run_by_chunks_if_the_model_runs_no_passes_now() -> None:
    rig = Rig(passes=LIMITS)
    rig.model.can_pass = False
    assert text_of(rig, LONG, 4) == continuation(LONG, 4)
    assert rig.model.steps[:4] == [[32], [32], [32], [4]]


def test_prompts_whose_tokens_all_have_logits_run_as_a_pass_with_the_same_logprobs() -> None:
    found, prompt = list[tuple[TokenLogprobs, ...] | None](), LONG + b"end" * 20
    limits = PassLimits(max_tokens=256, step_tokens=128)
    rigs = Rig(passes=limits), Rig()
    for rig in rigs:

        async def logprobs_of_prompt(rig: Rig = rig) -> tuple[TokenLogprobs, ...] | None:
            events = [event async for event in rig.submit(prompt, 2, prompt_logprobs=1)]
            return events[0].prompt_logprobs

        found.append(run(rig, logprobs_of_prompt))
    assert found[0] == found[1]
    assert found[0] is not None
    assert len(found[0]) == len(prompt) - 1
    assert [sizes(one) for one in rigs[0].model.passes] == [[[MAX_LOGITS_ROWS], [MAX_LOGITS_ROWS], [32]]]


def test_prompts_of_a_pass_whose_logits_fail_run_by_chunks(caplog: pytest.LogCaptureFixture) -> None:
    rig, prompts = Rig(passes=LIMITS), [LONG, b"other" * 20]
    outputs = count()

    def fail() -> None:
        if next(outputs) == 5:
            raise RuntimeError("no memory")

    rig.model.before_output = fail
    assert texts_of_waiting(rig, *[(prompt, 4) for prompt in prompts]) == [continuation(one, 4) for one in prompts]
    assert "a pass of 1 prompts failed; running them by chunks: no memory" in caplog.text


def test_even_short_prompts_are_passes_where_all_are() -> None:
    rig = Rig(passes=PassLimits(max_tokens=256, step_tokens=32, takes_all=True))
    assert text_of(rig, b"hello", 4) == continuation(b"hello", 4)
    assert [sizes(one) for one in rig.model.passes] == [[[5]]]


def test_requests_in_a_pass_show_its_progress() -> None:
    rig, seen = Rig(passes=LIMITS), list[int]()
    rig.model.before_unit = lambda: seen.extend(status.num_cached_tokens for status in rig.engine.statuses())
    text_of(rig, LONG, 1)
    assert seen == [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]
