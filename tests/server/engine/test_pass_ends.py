"""Ends of passes of prompts before their time: clients, deadlines, failures, better requests, and the engine's end."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
from collections.abc import Callable, Sequence
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

from expert_store import ExpertKey, ExpertLoadError
from server.engine.interface import (
    DeadlineExceededError,
    EngineUnavailableError,
    GenerationFailedError,
    TokenStream,
)
from server.engine.kv.block_manager import BlockGroup
from server.engine.pass_planning import PassLimits
from server.model.step import SequenceChunk, StepOutput
from tests.server.engine.fakes import FakePass, Rig, collect, continuation, run

LIMITS = PassLimits(max_tokens=256, step_tokens=32)
LONG = bytes(range(65, 65 + 100))


def at_unit(rig: Rig, number: int, action: Callable[[], None]) -> None:
    """Call a function before the unit of that number, in the engine's thread; it may raise."""
    left = [number]

    def before_unit() -> None:
        left[0] -= 1
        if left[0] == -1:
            action()

    rig.model.before_unit = before_unit


def unreadable() -> None:
    raise ExpertLoadError(ExpertKey(0, 1), "the disk is broken")


def disturb(rig: Rig, rng: random.Random) -> None:
    """Let units fail or wait for experts at random."""

    def before_unit() -> None:
        rig.model.seconds_to_experts = 0.001 * (rng.random() < 0.3)
        if rng.random() < 0.02:
            unreadable()

    rig.model.before_unit = before_unit


def are_cancelled(rig: Rig) -> list[bool]:
    return [one.is_cancelled for one in rig.model.passes]


@pytest.mark.parametrize("unit", [0, 4, 9])
def test_a_pass_without_clients_is_cancelled(unit: int) -> None:
    rig = Rig(passes=LIMITS)

    async def scenario() -> str:
        stream = rig.submit(LONG, 4)
        at_unit(rig, unit, stream.cancel)
        while not (rig.model.passes and rig.model.passes[0].is_ended):
            await asyncio.sleep(0)
        return await collect(rig.submit(b"next", 4))

    assert run(rig, scenario) == continuation(b"next", 4)
    assert rig.engine.statistics.finished["abort"] == 1
    assert are_cancelled(rig) == [unit < 9]


def test_a_client_that_leaves_a_shared_pass_does_not_delay_the_others() -> None:
    rig = Rig(passes=LIMITS)

    rig.model.before_step = lambda: None if is_there.wait(30) else sys.exit("no prompts")
    is_there = threading.Event()

    async def scenario() -> str:
        rig.submit(b"first", 1)
        left, other = rig.submit(LONG, 4), rig.submit(LONG[::-1], 4)
        at_unit(rig, 1, left.cancel)
        is_there.set()
        return await collect(other)

    assert run(rig, scenario) == continuation(LONG[::-1], 4)
    assert are_cancelled(rig) == [False]
    assert rig.engine.statistics.finished["abort"] == 1


def test_a_deadline_ends_a_pass() -> None:
    rig, now = Rig(passes=LIMITS), [0.0]
    rig.engine.clock = lambda: now[0]

    async def scenario() -> str:
        late = rig.submit(LONG, 4, deadline_seconds=5)
        at_unit(rig, 3, lambda: now.__setitem__(0, 6.0))
        with pytest.raises(DeadlineExceededError):
            await collect(late)
        return await collect(rig.submit(b"next", 4))

    assert run(rig, scenario) == continuation(b"next", 4)
    assert rig.engine.statistics.finished["deadline"] == 1
    assert are_cancelled(rig) == [True]


@pytest.mark.parametrize("unit", [0, 4, 9])
def test_after_a_failed_unit_prompts_run_by_chunks(unit: int) -> None:
    rig = Rig(passes=LIMITS)
    at_unit(rig, unit, unreadable)

    async def scenario() -> str:
        return await collect(rig.submit(LONG, 4))

    assert run(rig, scenario) == continuation(LONG, 4)
    assert are_cancelled(rig) == [True]
    assert rig.model.steps[:4] == [[32], [32], [32], [4]]


def test_only_the_faulty_prompt_of_a_failed_pass_fails() -> None:
    rig = Rig(passes=LIMITS)
    rig.model.before_unit = unreadable
    run_step = rig.model.run

    def run_or_fail(chunks: Sequence[SequenceChunk]) -> StepOutput:
        if any(chunk.token_ids[0] == 255 for chunk in chunks):
            unreadable()
        return run_step(chunks)

    rig.model.run = run_or_fail  # type: ignore[method-assign]

    async def scenario() -> str:
        faulty, other = rig.submit(b"\xff" * 100, 4), rig.submit(LONG, 4)
        with pytest.raises(GenerationFailedError):
            await collect(faulty)
        return await collect(other)

    assert run(rig, scenario) == continuation(LONG, 4)


def test_a_pass_that_can_not_begin_runs_by_chunks() -> None:
    rig = Rig(passes=LIMITS)

    def fail(steps: Sequence[Sequence[SequenceChunk]]) -> FakePass:
        raise RuntimeError("no memory")

    rig.model.begin_pass = fail  # type: ignore[method-assign]

    async def scenario() -> str:
        return await collect(rig.submit(LONG, 4))

    assert run(rig, scenario) == continuation(LONG, 4)


def test_steps_after_one_whose_events_fail_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(passes=LIMITS)

    def fail_once(*args: Any) -> Any:
        monkeypatch.undo()
        raise RuntimeError("no events")

    monkeypatch.setattr("server.engine.engine.postprocess", fail_once)

    async def scenario() -> str:
        with pytest.raises(GenerationFailedError):
            await collect(rig.submit(LONG, 4))
        return await collect(rig.submit(LONG, 4))

    assert run(rig, scenario) == continuation(LONG, 4)


def test_a_request_of_better_priority_takes_the_slot_of_a_pass() -> None:
    rig = Rig(max_running=1, passes=LIMITS)

    async def scenario() -> list[str]:
        loop, urgent, submitted = asyncio.get_running_loop(), list[TokenStream](), threading.Event()

        def submit() -> None:
            urgent.append(rig.submit(b"urgent", 4, priority=-1))
            submitted.set()

        def wait_for_urgent() -> None:
            loop.call_soon_threadsafe(submit)
            assert submitted.wait(30)

        at_unit(rig, 3, wait_for_urgent)
        text = await collect(rig.submit(LONG, 4))
        return [text, await collect(urgent[0])]

    assert run(rig, scenario) == [continuation(LONG, 4), continuation(b"urgent", 4)]
    assert are_cancelled(rig) == [True, False]
    assert rig.engine.statistics.preemptions == 1


def test_a_reset_prefix_cache_holds_nothing_of_a_pass_that_ran_meanwhile() -> None:
    rig = Rig(passes=LIMITS)

    async def scenario() -> str:
        at_unit(rig, 5, rig.engine.reset_prefix_cache)
        return await collect(rig.submit(LONG, 2))

    assert run(rig, scenario) == continuation(LONG, 2)
    assert are_cancelled(rig) == [True, False]


def test_the_engine_stops_in_the_middle_of_a_pass() -> None:
    rig = Rig(passes=LIMITS)
    at_unit(rig, 3, rig.engine.halt)

    async def scenario() -> None:
        with pytest.raises(EngineUnavailableError):
            await collect(rig.submit(LONG, 4))

    run(rig, scenario)
    assert are_cancelled(rig) == [True]


def test_a_pass_gives_way_to_steps_when_the_memory_becomes_too_small_for_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds = count(step=1000)  # each unit takes longer than a step
    monkeypatch.setattr("server.engine.prompt_passes.time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    rig = Rig(passes=LIMITS)

    async def scenario() -> list[str]:
        first = aiter(rig.submit(b"first", 60))
        begun = (await anext(first)).text
        at_unit(rig, 2, lambda: setattr(rig.model, "can_pass", False))
        text = await collect(rig.submit(LONG, 4))
        return [begun + "".join([event.text async for event in first]), text]

    assert run(rig, scenario) == [continuation(b"first", 60), continuation(LONG, 4)]
    assert are_cancelled(rig) == [True]


@pytest.mark.slow
@pytest.mark.parametrize("num_snapshots", [None, 0, 1, 4])
@pytest.mark.parametrize("seed", range(6))
def test_random_requests_each_get_their_own_text(
    seed: int, num_snapshots: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long, short, urgent and cancelled requests over a small cache; some units fail or wait for experts."""
    monkeypatch.setattr("server.engine.kv.block_manager.MIN_SNAPSHOT_TOKENS", 4)
    monkeypatch.setattr("server.engine.pass_planning.MIN_PIECE_TOKENS", 8)
    rng, faults = random.Random(seed), random.Random(seed)
    options: dict[str, Any] = {"num_snapshots": num_snapshots, "runs_ahead": seed % 2 == 1}
    if seed % 3 == 0:
        options["window_groups"] = (BlockGroup(40, window=9),)
    rig = Rig(48, max_running=5, max_batched_tokens=16, passes=PassLimits(80, 16), **options)

    disturb(rig, faults)

    async def one() -> None:
        prompt = b"a common beginning of some prompts"[: rng.choice((0, 0, 10, 25, 34))]
        prompt += bytes(rng.randrange(256) for _ in range(rng.randint(1, 110 - len(prompt))))
        count = rng.randint(1, 40)
        leaves_after = rng.randint(1, count) if rng.random() < 0.3 else None
        stream = rig.submit(prompt, count, priority=rng.choice((0, 0, 0, -1)))
        text = ""
        async for event in stream:
            text += event.text
            if event.num_generated == leaves_after:
                stream.cancel()
                break
        assert text == continuation(prompt, leaves_after or count)

    async def scenario() -> None:
        tasks = []
        for number in range(30):
            tasks.append(asyncio.create_task(one()))
            if number % 10 == 9:
                rig.submit(LONG, 4).cancel()
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        while rig.engine.statistics.num_running or rig.engine.statistics.num_waiting:
            await asyncio.sleep(0)

    run(rig, scenario)
    assert rig.engine.statistics.prefill_passes > 0
