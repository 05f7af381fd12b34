"""The memory that requests hold together."""

from __future__ import annotations

import asyncio
import gc

import pytest

from server.engine.interface import RequestMemory, RequestMemoryError, RequestRefusedError
from server.heap import HeapTrimmer


def test_a_promise_counts_until_it_is_released_once() -> None:
    memory = RequestMemory(lambda: 100)
    reservation = memory.reserve()
    assert reservation.take_now(60)
    assert (memory.held_bytes, memory.unused_bytes) == (60, 60)
    reservation.use_taken()
    assert (memory.held_bytes, memory.unused_bytes) == (60, 0)
    reservation.release()
    reservation.release()
    assert memory.held_bytes == 0


def test_bytes_beyond_a_promise_are_taken_as_they_are_used() -> None:
    memory = RequestMemory(lambda: 100)
    reservation = memory.reserve()

    async def use() -> None:
        await reservation.take(30, "The reply")
        await reservation.use(20, "The reply")
        assert memory.held_bytes == 30
        await reservation.use(20, "The reply")

    asyncio.run(use())
    assert (memory.held_bytes, memory.unused_bytes) == (40, 0)


def test_more_than_the_limit_is_refused_with_both_sizes() -> None:
    memory = RequestMemory(lambda: 2048)
    with pytest.raises(
        RequestRefusedError, match=r"The reply may take 3.0 KiB of memory, .* may hold 2.0 KiB"
    ) as error:
        memory.reserve().take_blocking(3072, "The reply", "logprobs")
    assert error.value.param == "logprobs"


def test_a_request_that_waits_too_long_is_refused_with_what_others_hold() -> None:
    memory = RequestMemory(lambda: 2048, wait_seconds=0.0)
    with memory.reserve() as others:
        others.use_now(1024)
        with pytest.raises(
            RequestMemoryError, match=r"needs 1.5 KiB of memory, and other requests hold 1.0 KiB of the 2"
        ):
            memory.reserve().take_blocking(1536, "The reply")
    assert memory.held_bytes == 0


def test_requests_get_memory_in_the_order_in_which_they_asked() -> None:
    memory = RequestMemory(lambda: 100)
    order: list[str] = []

    async def take(name: str, nbytes: int) -> None:
        reservation = memory.reserve()
        await reservation.take(nbytes, name)
        order.append(name)
        reservation.release()

    async def run() -> None:
        with memory.reserve() as others:
            others.use_now(50)
            large = asyncio.create_task(take("large", 80))
            await asyncio.sleep(0)
            small = asyncio.create_task(take("small", 10))
            await asyncio.sleep(0)
            assert not memory.reserve().take_now(10)
        await asyncio.gather(large, small)

    asyncio.run(run())
    assert order == ["large", "small"]


def test_a_cancelled_request_leaves_the_queue() -> None:
    memory = RequestMemory(lambda: 100)

    async def run() -> None:
        with memory.reserve() as others:
            others.use_now(100)
            waiting = asyncio.create_task(memory.reserve().take(50, "The reply"))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        assert memory.reserve().take_now(100)

    asyncio.run(run())


def test_room_is_made_for_a_request_that_waits() -> None:
    rooms: list[int] = []

    def make_room(nbytes: int) -> int:
        rooms.append(nbytes)
        return max(50, nbytes)

    memory = RequestMemory(lambda: 1000, make_room)
    reservation = memory.reserve()
    assert not reservation.take_now(60)
    reservation.take_blocking(60, "The reply")
    assert rooms == [0, 60]


def test_room_is_kept_for_what_is_taken_while_it_is_given_up() -> None:
    granted: list[int] = []

    def make_room(nbytes: int) -> int:
        if len(granted) == 2:
            assert reservation.take_now(50)
        granted.append(nbytes)
        return nbytes

    memory = RequestMemory(lambda: 1000, make_room)
    reservation = memory.reserve()
    memory.follow(100)
    memory.follow()
    assert granted == [0, 100, 0, 50]


@pytest.mark.slow
def test_a_reservation_that_is_dropped_returns_its_bytes() -> None:
    memory = RequestMemory(lambda: 100)
    assert memory.reserve().take_now(60)
    gc.collect()
    assert memory.held_bytes == 0


def test_nothing_is_taken_or_returned_after_the_release() -> None:
    memory = RequestMemory(lambda: 100)
    reservation = memory.reserve()
    assert reservation.use_now(10)
    reservation.release()
    assert not reservation.use_now(10)
    reservation.give_back(10)
    assert memory.held_bytes == 0


def test_a_part_of_a_reservation_outlives_the_rest() -> None:
    memory = RequestMemory(lambda: 100)
    with memory.reserve() as reservation:
        reservation.use_now(60)
        part = reservation.split(20)
    assert memory.held_bytes == 20
    part.release()
    assert memory.held_bytes == 0


MIB = 1 << 20


@pytest.mark.parametrize(("limit", "num_trims"), [(3 * MIB, 1), (4 * MIB, 0)])
def test_what_the_heap_keeps_is_trimmed_only_if_a_request_needs_its_room(
    limit: int, num_trims: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    trimmer = HeapTrimmer(lambda: None, delay_seconds=1000)
    monkeypatch.setattr("server.engine.interface.request_memory.shared_trimmer", lambda: trimmer)
    memory = RequestMemory(lambda: limit, wait_seconds=0.0)
    with memory.reserve() as first:
        first.take_blocking(2 * MIB, "The images")
        first.use_taken()
    with memory.reserve() as second:
        second.take_blocking(2 * MIB, "The images")
    assert trimmer.num_trims == num_trims
