"""Events that come to an ingress by two ways: in their order, whole, or with an error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextvars import ContextVar
from typing import Any

import pytest

from server.cluster import outbox
from server.cluster.outbox import Outboxes
from server.cluster.shared_calls import Arrivals, SharedCalls
from server.cluster.submitter import ReplicaLostError
from server.cluster.wire import Answer, Batch, SharedCall, Submission
from server.engine.interface import TokenEvent

OPENER: ContextVar[str | None] = ContextVar("OPENER", default=None)  # the request in whose context code runs
A, B, C = (TokenEvent(text, number) for number, text in enumerate("abc", start=1))


class Ways:
    """A way to one replica, whose shared call gets what a test puts, and ends with an error or in peace."""

    def __init__(self) -> None:
        self.items: asyncio.Queue[Sequence[Batch] | Exception | None] = asyncio.Queue()
        self.called: list[SharedCall] = []
        self.openers: list[str | None] = []

    def stream(self, submission: Submission) -> AsyncGenerator[Answer, None]:
        raise NotImplementedError

    async def share(self, call: SharedCall) -> AsyncGenerator[Sequence[Batch], None]:
        self.called.append(call)
        self.openers.append(OPENER.get())
        while (item := await self.items.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item


class Reader:
    """The events of a request, and whether some were lost."""

    def __init__(self) -> None:
        self.texts = ""
        self.is_lost = False

    def receive(self, event: TokenEvent) -> None:
        self.texts += event.text

    def lose(self) -> None:
        self.is_lost = True


Work = Callable[[Ways, SharedCalls, Reader, Arrivals], Coroutine[Any, Any, None]]


def run(work: Work) -> Ways:
    """Run a test's work with two requests at replica a, whose shared call is open; the first one is given."""

    async def with_two() -> Ways:
        ways, reader, other = Ways(), Reader(), Reader()
        calls = SharedCalls("me", ways)
        with (
            calls.arrivals(reader.receive, reader.lose) as first,
            calls.arrivals(other.receive, other.lose) as second,
        ):
            first.replica = second.replica = "a"
            calls.open("a")
            await settle()
            await work(ways, calls, reader, first)
        calls.close()
        return ways

    return asyncio.run(with_two())


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_replica_with_two_requests_is_called_once() -> None:
    async def work(_: Ways, calls: SharedCalls, __: Reader, ___: Arrivals) -> None:
        calls.open("a")

    assert run(work).called == [SharedCall("me", "a")]


def test_a_call_is_not_made_in_the_context_of_the_request_that_opens_it() -> None:
    """Serve cancels the calls that were made in the context of a request when its client leaves."""

    async def work(ways: Ways, calls: SharedCalls, _: Reader, __: Arrivals) -> None:
        OPENER.set("a request")
        ways.items.put_nowait([])
        ways.items.put_nowait(None)  # the call of the set-up ends
        await settle()
        calls.open("a")
        await settle()

    assert run(work).openers == [None, None]


def test_a_request_alone_needs_no_call() -> None:
    async def work(ways: Ways, calls: SharedCalls, reader: Reader, _: Arrivals) -> None:
        with calls.arrivals(reader.receive, reader.lose) as third:
            third.replica = "b"
            calls.open("b")
            await settle()
        assert [call.replica for call in ways.called] == ["a"]

    run(work)


def test_events_that_come_before_earlier_ones_wait_for_them() -> None:
    async def work(ways: Ways, _: SharedCalls, reader: Reader, arrivals: Arrivals) -> None:
        ways.items.put_nowait([Batch(arrivals.number, 1, [B]), Batch(arrivals.number, 2, [C])])
        await settle()
        assert reader.texts == ""
        arrivals.add(0, [A])
        assert reader.texts == "abc"

    run(work)


def test_the_end_waits_for_events_that_come_together() -> None:
    async def work(ways: Ways, _: SharedCalls, reader: Reader, arrivals: Arrivals) -> None:
        reaching = asyncio.create_task(arrivals.reach(2))
        await settle()
        assert not reaching.done()
        ways.items.put_nowait([Batch(arrivals.number, 0, [A, B])])
        await reaching
        assert reader.texts == "ab"

    run(work)


def test_events_of_a_request_whose_client_left_are_dropped() -> None:
    async def work(ways: Ways, _: SharedCalls, reader: Reader, arrivals: Arrivals) -> None:
        ways.items.put_nowait([Batch(999, 0, [C]), Batch(arrivals.number, 0, [A])])
        await settle()
        assert reader.texts == "a"

    run(work)


def test_a_call_that_fails_ends_the_requests_that_have_begun() -> None:
    async def work(ways: Ways, _: SharedCalls, reader: Reader, arrivals: Arrivals) -> None:
        arrivals.add(0, [A])
        ways.items.put_nowait(ReplicaLostError())
        await settle()
        assert reader.is_lost

    run(work)


def test_a_call_that_fails_lets_a_request_without_events_be_sent_again() -> None:
    async def work(ways: Ways, _: SharedCalls, reader: Reader, arrivals: Arrivals) -> None:
        reaching = asyncio.create_task(arrivals.reach(2))
        await settle()
        ways.items.put_nowait(ReplicaLostError())
        with pytest.raises(ReplicaLostError):
            await reaching
        assert not reader.is_lost

    run(work)


@pytest.mark.parametrize(("items", "num_calls"), [([[], None], 2), ([None], 1)], ids=["taken", "not taken"])
def test_a_replica_is_called_again_if_it_took_the_last_call(items: list[Any], num_calls: int) -> None:
    async def work(ways: Ways, calls: SharedCalls, _: Reader, __: Arrivals) -> None:
        for item in items:
            ways.items.put_nowait(item)
        await settle()
        calls.open("a")
        await settle()

    assert len(run(work).called) == num_calls


def test_batches_of_one_turn_are_taken_together_and_none_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "IDLE_SECONDS", 0.01)
    batches = [Batch(1, 0, [A]), Batch(2, 0, [B])]

    async def take() -> list[list[Batch]]:
        boxes = Outboxes()
        items = boxes.take("me")
        found = [await anext(items)]
        for batch in batches:
            assert boxes.put("me", batch)
        found += [item async for item in items]
        assert not boxes.put("me", batches[0])
        return found

    assert asyncio.run(take()) == [[], batches]
