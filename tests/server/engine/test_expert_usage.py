"""Expert cost and routed experts of a request."""

from __future__ import annotations

import threading

from server.engine.interface import ExpertUsage, GenerationRequest, SamplingParams, TokenEvent, TokenStream
from tests.server.engine.fakes import BLOCK_SIZE, Rig, run

PROMPT = tuple(b"a prompt of several words")


def submit(rig: Rig, prompt: tuple[int, ...] = PROMPT, *, returns_experts: bool = False) -> TokenStream:
    sampling = SamplingParams(5, temperature=0.0)
    return rig.engine.submit(GenerationRequest("test", prompt, sampling, returns_experts=returns_experts))


async def events_of(stream: TokenStream) -> list[TokenEvent]:
    return [event async for event in stream]


def usage_of(events: list[TokenEvent]) -> ExpertUsage:
    assert [event.expert_usage for event in events[:-1]] == [None] * 4
    usage = events[-1].expert_usage
    assert usage is not None
    return usage


def test_the_last_event_has_the_cost_of_all_steps() -> None:
    """The prompt takes two chunks, then come four decodes; the last token is not computed."""
    rig = Rig(max_batched_tokens=16)
    usage = usage_of(run(rig, lambda: events_of(submit(rig))))
    assert usage == ExpertUsage(len(PROMPT) + 4, len(PROMPT), len(PROMPT) << 10, float(len(PROMPT)))


def test_cached_tokens_cost_nothing() -> None:
    rig = Rig()

    async def twice() -> list[TokenEvent]:
        await events_of(submit(rig))
        return await events_of(submit(rig))

    usage = usage_of(run(rig, twice))
    num_left = len(PROMPT) - len(PROMPT) // BLOCK_SIZE * BLOCK_SIZE
    assert (usage.num_requests, usage.num_misses) == (num_left + 4, num_left)


def test_recomputed_tokens_cost_again() -> None:
    """Two requests outgrow the cache, so the second is preempted and computed again."""
    rig = Rig(num_blocks=11, max_batched_tokens=64)

    are_there = threading.Event()
    rig.model.before_step = are_there.wait

    async def together() -> list[list[TokenEvent]]:
        streams = [submit(rig, tuple(prompt)) for prompt in (b"ABCDEFGHIJKLMNOPQR", b"abcdefghijklmnopqrst")]
        are_there.set()
        return [await events_of(stream) for stream in streams]

    first, second = (usage_of(events) for events in run(rig, together))
    assert rig.engine.statistics.preemptions == 1
    assert first.num_requests == 18 + 4
    assert second.num_requests > 20 + 4


def test_each_event_has_the_experts_of_the_token_before() -> None:
    rig = Rig(max_batched_tokens=16)
    events = run(rig, lambda: events_of(submit(rig, returns_experts=True)))
    before = [PROMPT[-1], *(ord(event.text) for event in events[:-1])]
    for place, (token, event) in enumerate(zip(before, events, strict=True), start=len(PROMPT) - 1):
        assert event.experts is not None
        assert event.experts.tolist() == [[token % 8, -1], [place % 8, (place + 1) % 8]]


def test_events_have_no_experts_unless_requested() -> None:
    rig = Rig()
    assert [event.experts for event in run(rig, lambda: events_of(submit(rig)))] == [None] * 5
