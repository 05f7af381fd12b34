"""The engine over a fake model: batching, preemption, ends, failures and shutdown."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Sequence
from functools import partial

import pytest

from expert_store import ExpertKey, ExpertLoadError
from server.engine.interface import (
    DeadlineExceededError,
    EngineUnavailableError,
    FinishReason,
    GenerationFailedError,
    GenerationRequest,
    QueueFullError,
    RequestRefusedError,
    SamplingParams,
)
from server.engine.kv.block_manager import BlockGroup
from server.engine.text.detokenizer import WindowDetokenizer
from server.model.step import SequenceChunk, StepOutput
from tests.server.engine.fakes import Rig, collect, collect_together, continuation, decode, next_token, run


def test_requests_in_a_batch_generate_what_each_generates_alone() -> None:
    rig = Rig()
    prompts = [bytes([65 + i] * (1 + 7 * i)) for i in range(6)]

    async def scenario() -> list[str]:
        return await collect_together(rig, *[(prompt, 20) for prompt in prompts])

    assert run(rig, scenario) == [continuation(prompt, 20) for prompt in prompts]
    assert max(map(len, rig.model.steps)) > 1


def test_a_long_prompt_is_chunked_beside_running_decodes() -> None:
    rig = Rig(max_batched_tokens=8)

    async def scenario() -> list[str]:
        return await collect_together(rig, (b"ab", 12), (b"x" * 50, 4))

    assert run(rig, scenario) == [continuation(b"ab", 12), continuation(b"x" * 50, 4)]
    assert max(sum(step) for step in rig.model.steps) == 8
    assert any(1 in step and max(step) > 1 for step in rig.model.steps)


def test_more_text_than_cache_is_served_by_preemption() -> None:
    rig = Rig(num_blocks=10)
    prompts = [bytes([65 + i] * 8) for i in range(5)]

    async def scenario() -> list[str]:
        return await collect_together(rig, *[(prompt, 24) for prompt in prompts])

    assert run(rig, scenario) == [continuation(prompt, 24) for prompt in prompts]
    assert rig.engine.statistics.preemptions > 0


def test_a_request_that_fills_the_whole_context_ends() -> None:
    rig = Rig(num_blocks=8)

    async def scenario() -> str:
        return await collect(rig.submit(b"y" * 12, 20))

    assert run(rig, scenario) == continuation(b"y" * 12, 20)


def test_events_carry_counts_and_one_finish_reason() -> None:
    rig = Rig()

    async def scenario() -> list[tuple[int, FinishReason | None]]:
        return [(event.num_generated, event.finish_reason) async for event in rig.submit(b"hello", 3)]

    assert run(rig, scenario) == [(1, None), (2, None), (3, FinishReason.LENGTH)]


@pytest.mark.parametrize("way", ["eos", "stop_token_ids"])
def test_an_end_token_ends_the_text_and_is_not_part_of_it(way: str) -> None:
    prompt = b"hello"
    text = continuation(prompt, 5)
    end = next(i for i in range(1, 5) if text[i] not in text[:i])
    token = frozenset({ord(text[end])})
    rig = Rig(eos_token_ids=token if way == "eos" else frozenset())
    extra = {} if way == "eos" else {"stop_token_ids": token}

    async def scenario() -> tuple[str, int]:
        events = [event async for event in rig.submit(prompt, 50, **extra)]
        assert events[-1].finish_reason is FinishReason.STOP
        return "".join(event.text for event in events), events[-1].num_generated

    assert run(rig, scenario) == (text[:end], end + 1)


def test_ignore_eos_goes_on_to_the_limit() -> None:
    token = next_token(b"hello")
    rig = Rig(eos_token_ids=frozenset({token}))

    async def scenario() -> str:
        return await collect(rig.submit(b"hello", 9, ignore_eos=True))

    assert run(rig, scenario) == continuation(b"hello", 9)


def test_a_stop_string_over_several_tokens_ends_the_text_before_it() -> None:
    text = continuation(b"stop", 12)
    rig = Rig()

    async def scenario() -> str:
        return await collect(rig.submit(b"stop", 12, stop=("zzz", text[5:8])))

    assert run(rig, scenario) == text[:5]


def test_a_cancelled_request_stops_within_one_step_and_frees_its_blocks() -> None:
    rig = Rig()
    is_cancelled = threading.Event()
    rig.model.before_step = lambda: (
        len(rig.model.steps) < 20 or is_cancelled.wait(30)
    )  # so that the request is still running

    async def scenario() -> int:
        stream = rig.submit(b"gone", 200)
        async for event in stream:
            if event.num_generated == 3:
                break
        stream.cancel()
        steps = len(rig.model.steps)
        is_cancelled.set()
        while rig.engine.statistics.num_running:
            await asyncio.sleep(0)
        return len(rig.model.steps) - steps

    assert run(rig, scenario) <= 1
    assert rig.engine.statistics.finished["abort"] == 1


def test_a_request_cancelled_in_the_queue_never_runs() -> None:
    rig = Rig(max_running=1)
    gate = threading.Event()
    rig.model.before_step = lambda: gate.wait(30)

    async def scenario() -> None:
        first = rig.submit(b"first", 4)
        second = rig.submit(b"second", 4)
        second.cancel()
        gate.set()
        assert await collect(first) == continuation(b"first", 4)

    run(rig, scenario)
    assert all(len(step) == 1 for step in rig.model.steps)
    assert sum(map(sum, rig.model.steps)) == len(b"first") + 3


def test_a_full_queue_refuses_and_recovers() -> None:
    rig = Rig(max_queued=2, max_running=1)
    gate = threading.Event()
    rig.model.before_step = lambda: gate.wait(30)

    async def scenario() -> None:
        streams = [rig.submit(b"q", 2), rig.submit(b"q", 2)]
        with pytest.raises(QueueFullError, match="2 requests are waiting"):
            streams.extend(rig.submit(b"q", 2) for _ in range(2))  # the first may run already
        gate.set()
        for stream in streams:
            assert await collect(stream) == continuation(b"q", 2)
        assert await collect(rig.submit(b"later", 2)) == continuation(b"later", 2)

    run(rig, scenario)
    assert rig.engine.statistics.num_refused == 1


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "message", "param"),
    [
        ((), 4, "the prompt is empty", "prompt"),
        ((1, 256), 4, "token id 256 is not below 256", "prompt"),
        ((-1,), 4, "token id -1", "prompt"),
        ((1,) * 250, 7, "do not fit the context of 256 tokens", "max_tokens"),
        ((1,), -1, "max_tokens -1", "max_tokens"),
    ],
)
def test_an_impossible_request_is_refused(prompt: tuple[int, ...], max_tokens: int, message: str, param: str) -> None:
    rig = Rig()

    async def scenario() -> None:
        with pytest.raises(RequestRefusedError, match=message) as refusal:
            rig.submit(prompt, max_tokens)
        assert refusal.value.param == param

    run(rig, scenario)


def test_a_failed_step_ends_its_requests_and_the_engine_continues(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    failures = [ExpertLoadError(ExpertKey(1, 3), "/secret/path")]

    def fail_once() -> None:
        if failures:
            raise failures.pop()

    rig.model.before_step = fail_once

    async def scenario() -> None:
        with pytest.raises(GenerationFailedError) as failure:
            await collect(rig.submit(b"unlucky"))
        assert str(failure.value) == "expert 3 of layer 1 can't be read; see the log"
        assert await collect(rig.submit(b"lucky", 5)) == continuation(b"lucky", 5)

    run(rig, scenario)
    assert rig.engine.statistics.finished["error"] == 1
    [told] = [record for record in caplog.records if "a step failed" in record.getMessage()]
    assert told.getMessage().endswith("cannot read expert 3 of layer 1: /secret/path")
    assert told.exc_info is None  # every request that needs the expert logs such a line


def test_a_failed_step_ends_only_the_faulty_request() -> None:
    """The sequences of a failed step are run one by one."""
    rig = Rig()
    run_all = rig.model.run

    def run_unless_unlucky(chunks: Sequence[SequenceChunk]) -> StepOutput:
        if any(ord("!") in chunk.token_ids for chunk in chunks):
            raise ExpertLoadError(ExpertKey(1, 3), "the checksum is wrong")
        return run_all(chunks)

    rig.model.run = run_unless_unlucky  # type: ignore[method-assign]

    async def scenario() -> None:
        unlucky, lucky = rig.submit(b"bad!", 5), rig.submit(b"good", 5)
        with pytest.raises(GenerationFailedError):
            await collect(unlucky)
        assert await collect(lucky) == continuation(b"good", 5)

    run(rig, scenario)
    assert rig.engine.statistics.finished["error"] == 1
    assert rig.engine.statistics.finished["length"] == 1


def test_sequences_of_a_sequential_model_run_one_by_one() -> None:
    """A failure ends only its own sequence, and nothing runs twice."""
    rig = Rig()
    rig.model.is_sequential = True
    run_all, runs, are_there = rig.model.run, [], threading.Event()

    def run_unless_unlucky(chunks: Sequence[SequenceChunk]) -> StepOutput:
        are_there.wait(30)  # otherwise the failed one's slot would go to a later request
        runs.append([(chunk.slot, chunk.num_cached) for chunk in chunks])
        if ord("!") in chunks[0].token_ids:
            raise ExpertLoadError(ExpertKey(1, 3), "the checksum is wrong")
        return run_all(chunks)

    rig.model.run = run_unless_unlucky  # type: ignore[method-assign]

    async def scenario() -> None:
        streams = [rig.submit(prompt, 5) for prompt in (b"one", b"bad!", b"three")]
        are_there.set()
        with pytest.raises(GenerationFailedError):
            await collect(streams[1])
        assert await collect(streams[0]) == continuation(b"one", 5)
        assert await collect(streams[2]) == continuation(b"three", 5)

    run(rig, scenario)
    assert all(len(chunks) == 1 for chunks in runs)
    assert len(runs) == len({chunks[0] for chunks in runs})
    assert rig.engine.statistics.finished["error"] == 1


def test_slots_are_released_when_their_sequences_end_or_are_preempted() -> None:
    """A request that is cancelled before it begins never has a slot."""
    rig = Rig(num_blocks=12, max_running=3)
    busy, gate = threading.Event(), threading.Event()

    def wait() -> None:
        busy.set()
        gate.wait(30)

    rig.model.before_step = wait

    async def scenario() -> None:
        first = rig.submit(b"first", 1)
        await asyncio.to_thread(busy.wait, 30)
        rig.submit(b"left", 8).cancel()
        texts = [rig.submit(b"a" * 12, 14), rig.submit(b"b" * 12, 14)]
        gate.set()
        await collect(first)
        assert [await collect(text) for text in texts] == [continuation(b"a" * 12, 14), continuation(b"b" * 12, 14)]

    run(rig, scenario)
    preemptions = rig.engine.statistics.preemptions
    assert preemptions > 0
    assert len(rig.model.released) == 3 + preemptions


def test_a_dead_engine_ends_every_stream_and_accepts_no_more() -> None:
    rig = Rig()

    def die() -> None:
        raise KeyError("a bug")

    rig.model.before_step = die

    async def scenario() -> None:
        with pytest.raises(GenerationFailedError, match="the engine died"):
            await collect(rig.submit(b"last"))
        assert not rig.engine.is_alive
        with pytest.raises(EngineUnavailableError):
            rig.submit(b"too late")

    run(rig, scenario)


def test_a_panic_during_a_step_ends_only_the_faulty_request() -> None:
    class Panic(BaseException):
        """As ``pyo3_runtime.PanicException``."""

    def panic() -> None:
        raise Panic

    rig = Rig()

    async def scenario() -> None:
        rig.model.before_step = panic
        with pytest.raises(GenerationFailedError):
            await collect(rig.submit(b"unlucky", 5))
        rig.model.before_step = lambda: None
        assert await collect(rig.submit(b"lucky", 5)) == continuation(b"lucky", 5)

    run(rig, scenario)


def test_no_event_waits_for_a_step_with_a_prompt() -> None:
    rig = Rig(max_running=2)
    run_model, are_waiting = rig.model.run, {True: set[bool](), False: set[bool]()}  # by whether the step has a prompt

    def run_step(chunks: Sequence[SequenceChunk]) -> StepOutput:
        are_waiting[any(chunk.num_tokens > 1 for chunk in chunks)].add(bool(rig.model.deferred))
        return run_model(chunks)

    rig.model.run = run_step  # type: ignore[method-assign]

    async def scenario() -> None:
        await collect_together(rig, (b"first", 40), (b"second", 5), (b"third", 5))

    run(rig, scenario)
    assert are_waiting == {True: {False}, False: {True}}


@pytest.mark.parametrize("defers", [True, False])
def test_a_text_that_cannot_be_made_ends_only_its_request(defers: bool) -> None:
    class Faulty(WindowDetokenizer):
        def push(self, token_id: int) -> str:
            raise RuntimeError("no such token")

    rig = Rig(
        defers=defers,
        detokenizer=lambda prompt, _: (Faulty if bytes(prompt) == b"unlucky" else WindowDetokenizer)(
            decode, (), prompt
        ),
    )

    async def scenario() -> None:
        lucky = asyncio.create_task(collect(rig.submit(b"lucky", 20)))
        with pytest.raises(GenerationFailedError):
            await collect(rig.submit(b"unlucky", 20))
        assert await lucky == continuation(b"lucky", 20)

    run(rig, scenario)
    assert rig.engine.statistics.finished == {"length": 1, "error": 1}


def test_stopping_ends_open_streams_with_an_error() -> None:
    rig = Rig()
    gate = threading.Event()
    rig.model.before_step = lambda: gate.wait(30)

    async def scenario() -> None:
        rig.engine.start()
        stream = rig.submit(b"open", 50)
        stopping = asyncio.create_task(asyncio.to_thread(rig.engine.stop))
        while rig.engine.is_alive:
            await asyncio.sleep(0)
        gate.set()
        with pytest.raises(EngineUnavailableError, match="shutting down"):
            await collect(stream)
        await stopping

    asyncio.run(scenario())


def test_halting_ends_open_streams_while_a_step_still_runs() -> None:
    rig = Rig()
    has_begun, gate = threading.Event(), threading.Event()

    def wait() -> None:
        has_begun.set()
        gate.wait(30)

    rig.model.before_step = wait

    async def scenario() -> None:
        rig.engine.start()
        streams = [rig.submit(b"running", 50)]
        await asyncio.to_thread(has_begun.wait, 30)
        streams.append(rig.submit(b"next", 50))
        rig.engine.halt()
        for stream in streams:
            with pytest.raises(EngineUnavailableError, match="shutting down"):
                await collect(stream)
        with pytest.raises(EngineUnavailableError):
            rig.submit(b"too late", 1)
        assert rig.engine._thread.is_alive()
        gate.set()
        await asyncio.to_thread(rig.engine.stop)

    asyncio.run(scenario())
    rig.blocks.check_integrity([])


@pytest.mark.slow
@pytest.mark.parametrize("num_snapshots", [None, 0, 1, 4])
@pytest.mark.parametrize("seed", range(5))
def test_random_requests_each_get_their_own_text(
    seed: int, num_snapshots: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long, short and cancelled requests, some of which begin alike, over a small cache, submitted at random moments.

    With snapshots the model has states, too, that each sequence must go on from where it stands. With some seeds it
    chooses the tokens of decodes itself.
    """
    monkeypatch.setattr("server.engine.kv.block_manager.MIN_SNAPSHOT_TOKENS", 4)
    rng = random.Random(seed)
    rig = Rig(
        num_blocks=24, max_running=5, max_batched_tokens=16, num_snapshots=num_snapshots, runs_ahead=seed % 2 == 1
    )

    async def one() -> None:
        prompt = b"a common beginning of some prompts"[: rng.choice((0, 0, 10, 25, 34))]
        prompt += bytes(rng.randrange(256) for _ in range(rng.randint(1, 40 - len(prompt))))
        count = rng.randint(1, 40)
        leaves_after = rng.randint(1, count) if rng.random() < 0.3 else None
        stream = rig.submit(prompt, count)
        text = ""
        async for event in stream:
            text += event.text
            if event.num_generated == leaves_after:
                stream.cancel()
                break
        assert text == continuation(prompt, leaves_after or count)

    async def scenario() -> None:
        tasks = []
        for _ in range(30):
            tasks.append(asyncio.create_task(one()))
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        while rig.engine.statistics.num_running or rig.engine.statistics.num_waiting:
            await asyncio.sleep(0)

    run(rig, scenario)


def test_a_decode_has_the_block_of_the_token_after_its_own_if_steps_may_begin_ahead() -> None:
    rig, tables = Rig(runs_ahead=True), []
    run_step = rig.model.run

    def noted(chunks: Sequence[SequenceChunk]) -> StepOutput:
        tables.append([len(chunk.block_tables[0]) for chunk in chunks])
        return run_step(chunks)

    rig.model.run = noted  # type: ignore[method-assign]

    async def scenario() -> str:
        return await collect(rig.submit(b"p" * 3, 4))

    assert run(rig, scenario) == continuation(b"p" * 3, 4)
    assert tables == [[1], [2], [2], [2]]
    assert rig.model.num_chosen == 3


def test_a_repeated_prompt_is_computed_once_and_continued_equally() -> None:
    rig = Rig()

    async def scenario() -> list[str]:
        return [await collect(rig.submit(b"p" * 50, 6)) for _ in range(2)]

    assert run(rig, scenario) == [continuation(b"p" * 50, 6)] * 2
    assert sum(map(sum, rig.model.steps)) == (50 + 5) + (2 + 5)
    assert rig.engine.statistics.prefix_cache_queries == 100
    assert rig.engine.statistics.prefix_cache_hits == 48


def test_concurrent_prompts_compute_their_common_prefix_once() -> None:
    """The choices of one request are such prompts."""
    rig = Rig(max_batched_tokens=16)
    prompts = [b"s" * 40 + end for end in (b"a", b"b", b"c")]

    async def scenario() -> list[str]:
        return await collect_together(rig, *[(prompt, 4) for prompt in prompts])

    assert run(rig, scenario) == [continuation(prompt, 4) for prompt in prompts]
    assert sum(map(sum, rig.model.steps)) == 41 + 1 + 1 + 3 * 3


def test_a_model_with_states_continues_from_snapshots_of_prompts_and_completions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A conversation: the second prompt is the first, its answer and more; choices of one prompt come together."""
    monkeypatch.setattr("server.engine.kv.block_manager.MIN_SNAPSHOT_TOKENS", 8)
    rig = Rig(num_snapshots=6)
    first = b"q" * 30
    second = first + continuation(first, 15).encode() + b"and then?"

    async def scenario() -> list[str]:
        texts = [await collect(rig.submit(first, 15)), await collect(rig.submit(second, 3))]
        return [*texts, *await collect_together(rig, (second, 3), (second, 3))]

    third = continuation(second, 3)
    assert run(rig, scenario) == [continuation(first, 15), third, third, third]
    assert rig.engine.statistics.prefix_cache_hits == 44 + 52 + 52


def test_without_a_snapshot_a_model_with_states_computes_the_full_prompt() -> None:
    rig = Rig(num_snapshots=0)

    async def scenario() -> list[str]:
        return [await collect(rig.submit(b"p" * 50, 6)) for _ in range(2)]

    assert run(rig, scenario) == [continuation(b"p" * 50, 6)] * 2
    assert rig.engine.statistics.prefix_cache_hits == 0


def test_a_sequence_that_waits_for_a_prefix_continues_when_the_other_is_cancelled() -> None:
    rig = Rig(max_batched_tokens=8)
    gate = threading.Event()
    rig.model.before_step = lambda: gate.wait(30)

    async def scenario() -> str:
        first, second = rig.submit(b"s" * 40, 4), rig.submit(b"s" * 40, 4)
        first.cancel()
        gate.set()
        return await collect(second)

    assert run(rig, scenario) == continuation(b"s" * 40, 4)


def test_running_decodes_go_before_a_long_prompt_of_better_priority() -> None:
    rig = Rig(max_batched_tokens=8)
    is_there = threading.Event()
    rig.model.before_step = lambda: None if len(rig.model.steps) < 2 else is_there.wait(30)

    async def scenario() -> None:
        short = rig.submit(b"s", 20)
        await anext(aiter(short))
        long = rig.submit(b"l" * 60, 2, priority=-1)
        is_there.set()
        await asyncio.gather(collect(short), collect(long))

    run(rig, scenario)
    assert [1, 7] in rig.model.steps


@pytest.mark.parametrize("is_chunked", [False, True])
def test_layers_with_a_window_keep_only_that(is_chunked: bool) -> None:
    groups = [BlockGroup(20, 6, is_chunked), BlockGroup(24, 11, is_chunked)]
    rig = Rig(window_groups=groups, max_batched_tokens=8)
    prompts = [bytes([65 + i] * (1 + 9 * i)) for i in range(4)]

    async def scenario() -> list[str]:
        return await collect_together(rig, *[(prompt, 40) for prompt in prompts])

    assert run(rig, scenario) == [continuation(prompt, 40) for prompt in prompts]


@pytest.mark.parametrize("limits", [{"max_running": 1}, {"num_blocks": 8}])
def test_a_request_of_better_priority_runs_first_and_the_other_still_ends(limits: dict[str, int]) -> None:
    rig = Rig(**limits)
    ends: list[str] = []
    gate = threading.Event()

    def wait_in_the_middle(loop: asyncio.AbstractEventLoop) -> None:
        if len(rig.model.steps) == 3:
            gate.wait(30)
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(30)  # all events so far were delivered

    async def one(name: str, prompt: bytes, count: int, priority: int) -> str:
        text = await collect(rig.submit(prompt, count, priority=priority))
        ends.append(name)
        return text

    async def scenario() -> None:
        rig.model.before_step = partial(wait_in_the_middle, asyncio.get_running_loop())
        late = asyncio.create_task(one("patient", b"x" * 10, 20, 5))
        while len(rig.model.steps) < 3:
            await asyncio.sleep(0)
        urgent = asyncio.create_task(one("urgent", b"y" * 10, 10, -1))
        await asyncio.sleep(0)
        gate.set()
        assert await urgent == continuation(b"y" * 10, 10)
        assert await late == continuation(b"x" * 10, 20)

    run(rig, scenario)
    assert ends == ["urgent", "patient"]


def test_a_request_past_its_deadline_ends_with_an_error_and_the_others_continue() -> None:
    rig = Rig()
    now = [0.0]
    rig.engine.clock = lambda: now[0]

    async def scenario() -> None:
        late = rig.submit(b"long", 240, deadline_seconds=5)
        reader = aiter(late)
        for _ in range(3):
            await anext(reader)
        now[0] = 6.0
        with pytest.raises(DeadlineExceededError, match="not done within 5 seconds"):
            await collect(late)
        assert await collect(rig.submit(b"next", 3, deadline_seconds=5)) == continuation(b"next", 3)

    run(rig, scenario)
    assert rig.engine.statistics.finished["deadline"] == 1


def test_time_that_passed_before_a_request_was_submitted_counts_for_its_deadline() -> None:
    rig = Rig()

    async def scenario() -> None:
        params = SamplingParams(max_tokens=4, temperature=0.0)
        spent = GenerationRequest("spent", tuple(b"late"), params, deadline_seconds=5, spent_seconds=6)
        with pytest.raises(DeadlineExceededError, match="not done within 5 seconds"):
            await collect(rig.engine.submit(spent))

    run(rig, scenario)


def test_a_prompt_with_logprobs_is_computed_fully_and_in_small_chunks() -> None:
    rig = Rig(max_batched_tokens=100)
    wanted: list[int] = []
    run_all = rig.model.run

    def note(chunks: Sequence[SequenceChunk]) -> StepOutput:
        wanted.extend(chunk.num_logits for chunk in chunks)
        return run_all(chunks)

    rig.model.run = note  # type: ignore[method-assign]

    async def scenario() -> None:
        await collect(rig.submit(b"e" * 90, 1))
        wanted.clear()
        await collect(rig.submit(b"e" * 90, 2, prompt_logprobs=0))

    run(rig, scenario)
    assert wanted == [64, 26, 1]


def test_prompts_with_logprobs_share_the_logits_rows_of_a_step() -> None:
    rig = Rig(num_blocks=256, max_batched_tokens=256)
    wanted: list[list[int]] = []
    run_all = rig.model.run

    def note(chunks: Sequence[SequenceChunk]) -> StepOutput:
        wanted.append([chunk.num_logits for chunk in chunks])
        return run_all(chunks)

    rig.model.run = note  # type: ignore[method-assign]

    async def scenario() -> None:
        prompts = (b"e" * 40, b"f" * 40, b"g" * 40)
        await asyncio.gather(*(collect(rig.submit(prompt, 1, prompt_logprobs=0)) for prompt in prompts))

    run(rig, scenario)
    assert max(map(sum, wanted)) <= 64 + len(wanted[0])
    assert sum(map(sum, wanted)) == 120


def test_decoding_sequences_count_among_the_logits_rows_of_a_step() -> None:
    rig = Rig(num_blocks=256, max_batched_tokens=256)
    wanted: list[int] = []
    run_all = rig.model.run

    def note(chunks: Sequence[SequenceChunk]) -> StepOutput:
        wanted.append(sum(chunk.num_logits for chunk in chunks))
        return run_all(chunks)

    rig.model.run = note  # type: ignore[method-assign]

    async def scenario() -> None:
        older = [rig.submit(prompt, 40) for prompt in (b"older", b"other")]
        await asyncio.gather(*map(collect, [*older, rig.submit(b"e" * 200, 1, prompt_logprobs=0)]))

    run(rig, scenario)
    assert max(wanted) == 64
