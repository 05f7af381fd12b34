"""The event queue: order, bound, and errors."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from server.engine.interface import (
    EVENT_BYTES,
    MAX_UNREAD,
    EventQueue,
    FinishReason,
    GenerationFailedError,
    GenerationRequest,
    RequestMemory,
    RequestMemoryError,
    SamplingParams,
    Timeline,
    TokenEvent,
    TokenStream,
    merge,
)

EVENTS = [TokenEvent("a", 1), TokenEvent("b", 2, FinishReason.LENGTH)]


def make_streams(count: int) -> list[TokenStream]:
    request = GenerationRequest("test", (1,), SamplingParams(max_tokens=2))
    return [TokenStream(request, asyncio.get_running_loop(), Timeline(0.0)) for _ in range(count)]


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def body() -> None:
        await asyncio.wait_for(scenario(), timeout=30)

    asyncio.run(body())


def test_all_queued_events_are_taken_at_once_and_in_order() -> None:
    async def scenario() -> None:
        one, other = make_streams(2)
        queue = merge([one, other])
        other.receive(EVENTS[0])
        one.receive(EVENTS[0])
        other.receive(EVENTS[1])
        assert await queue.take() == [(1, EVENTS[0]), (0, EVENTS[0]), (1, EVENTS[1])]
        one.receive(EVENTS[1])
        assert await queue.take() == [(0, EVENTS[1])]

    run(scenario)


def test_an_error_is_raised_after_earlier_events() -> None:
    async def scenario() -> None:
        (stream,) = make_streams(1)
        queue = merge([stream])
        stream.receive(EVENTS[0])
        stream.receive(GenerationFailedError("broken"))
        assert await queue.take() == [(0, EVENTS[0])]
        with pytest.raises(GenerationFailedError, match="broken"):
            await queue.take()

    run(scenario)


def test_the_failure_of_one_stream_cancels_the_others() -> None:
    async def scenario() -> None:
        one, other = make_streams(2)
        merge([one, other])
        one.receive(GenerationFailedError("broken"))
        other.receive(EVENTS[0])
        assert (one.is_cancelled, other.is_cancelled) == (False, True)

    run(scenario)


def test_a_reader_that_lags_too_far_gets_an_error() -> None:
    async def scenario() -> None:
        (stream,) = make_streams(1)
        queue = merge([stream])
        for _ in range(MAX_UNREAD):
            stream.receive(EVENTS[0])
        assert not stream.is_cancelled
        stream.receive(EVENTS[0])
        assert stream.is_cancelled
        with pytest.raises(GenerationFailedError, match=f"{MAX_UNREAD} tokens of the reply were waiting"):
            await queue.take()

    run(scenario)


def test_a_waiting_reader_is_woken() -> None:
    async def scenario() -> None:
        queue = EventQueue()
        taking = asyncio.create_task(queue.take())
        await asyncio.sleep(0)
        queue.put(0, EVENTS[0])
        assert await taking == [(0, EVENTS[0])]

    run(scenario)


def test_events_that_wait_are_counted_beyond_what_was_reserved() -> None:
    memory = RequestMemory(lambda: 10 * EVENT_BYTES)
    queue = EventQueue(1, memory.reserve(), free_bytes=2 * EVENT_BYTES)
    event = TokenEvent("", 1)
    for _ in range(3):
        assert queue.put(0, event)
    assert memory.held_bytes == EVENT_BYTES
    assert len(asyncio.run(queue.take())) == 3
    assert memory.held_bytes == 0


def test_a_reader_falls_too_far_behind_when_the_memory_for_requests_ends() -> None:
    memory = RequestMemory(lambda: 10 * EVENT_BYTES)
    queue = EventQueue(1, memory.reserve())
    accepted = [queue.put(0, TokenEvent("", number)) for number in range(12)]
    assert accepted == [True] * 10 + [False] * 2
    with pytest.raises(RequestMemoryError, match=r"10 tokens .* waiting to be read: .* other requests hold"):
        asyncio.run(queue.take())
    assert memory.held_bytes == 0


def test_a_reader_that_keeps_up_gets_the_next_event_without_memory_for_it() -> None:
    queue = EventQueue(1, RequestMemory(lambda: 0).reserve())
    for event in EVENTS:
        assert queue.put(0, event)
        assert asyncio.run(queue.take()) == [(0, event)]


def test_events_that_gather_are_taken_after_a_time() -> None:
    async def scenario() -> None:
        (stream,) = make_streams(1)
        queue = merge([stream])
        stream.receive(EVENTS[0])
        await queue.gather(0.01)
        assert await queue.take() == [(0, EVENTS[0])]

    run(scenario)


@pytest.mark.parametrize("item", [EVENTS[1], GenerationFailedError("broken")])
def test_the_end_of_a_stream_ends_the_gathering(item: TokenEvent | GenerationFailedError) -> None:
    async def scenario() -> None:
        (stream,) = make_streams(1)
        queue = merge([stream])
        gathering = asyncio.create_task(queue.gather(3600))
        await asyncio.sleep(0)
        stream.receive(item)
        await gathering

    run(scenario)


@pytest.mark.parametrize("item", [EVENTS[1], GenerationFailedError("broken")])
def test_nothing_gathers_when_a_stream_has_ended(item: TokenEvent | GenerationFailedError) -> None:
    async def scenario() -> None:
        (stream,) = make_streams(1)
        queue = merge([stream])
        stream.receive(item)
        await queue.gather(3600)

    run(scenario)
