"""Events of requests that come by two ways: each request's own stream, and one that those of a replica share."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context
from itertools import count

from server.cluster.submitter import ReplicaLostError, Submitter
from server.cluster.wire import SharedCall
from server.engine.interface import TokenEvent

REFUSED_SECONDS = 30.0  # after a call that its replica did not take

log = logging.getLogger(__name__)


class Arrivals:
    """Events of one submission, passed on in their order whichever way they come.

    Args:
        number: of the submission.
        receive: takes each event.
        lose: ends the request, some of whose events are lost.
    """

    def __init__(self, number: int, receive: Callable[[TokenEvent], None], lose: Callable[[], None]):
        self.number, self._receive, self._lose = number, receive, lose
        self.replica: str | None = None  # that has taken the submission
        self._num_passed = 0
        self._early: dict[int, Sequence[TokenEvent]] = {}  # by the number of events before them
        self._is_lost = False
        self._passed: asyncio.Event = asyncio.Event()

    def add(self, start: int, events: Sequence[TokenEvent]) -> None:
        """Add events that follow ``start`` others."""
        if events:
            self._early[start] = events
        while self._num_passed in self._early:
            ready = self._early.pop(self._num_passed)
            self._num_passed += len(ready)
            for event in ready:
                self._receive(event)
            self._passed.set()

    async def reach(self, start: int) -> None:
        """Wait until so many events were passed on.

        Raises:
            ReplicaLostError: some of them are lost.
        """
        while self._num_passed < start:
            if self._is_lost:
                raise ReplicaLostError
            self._passed.clear()
            await self._passed.wait()

    def lose(self) -> None:
        """Note that the events which come together are lost. A request without any event can be sent again."""
        self._is_lost = True
        self._passed.set()
        if self._num_passed:
            self._lose()


class SharedCalls:
    """Calls of this ingress for the events of all requests at one replica. Use it on one event loop.

    Args:
        sender: names this ingress.
    """

    def __init__(self, sender: str, submitter: Submitter):
        self._sender, self._submitter = sender, submitter
        self._numbers = count(1)
        self._arrivals: dict[int, Arrivals] = {}
        self._open: dict[str, asyncio.Task[None]] = {}  # by replica
        self._refused_until: dict[str, float] = {}

    @contextmanager
    def arrivals(self, receive: Callable[[TokenEvent], None], lose: Callable[[], None]) -> Iterator[Arrivals]:
        """Pass on the events of a new submission, while the context lasts."""
        arrivals = Arrivals(next(self._numbers), receive, lose)
        self._arrivals[arrivals.number] = arrivals
        try:
            yield arrivals
        finally:
            del self._arrivals[arrivals.number]

    def open(self, replica: str) -> None:
        """Call a replica that has two requests or more, unless that was done."""
        if replica in self._open or time.monotonic() < self._refused_until.get(replica, 0.0):
            return
        if sum(each.replica == replica for each in self._arrivals.values()) > 1:
            # Not in the context of a request: Serve cancels with it all calls that were made there.
            self._open[replica] = asyncio.create_task(self._read(replica), context=Context())

    def close(self) -> None:
        """End all calls."""
        for task in self._open.values():
            task.cancel()

    async def _read(self, replica: str) -> None:
        is_taken = False
        try:
            async for batches in self._submitter.share(SharedCall(self._sender, replica)):
                is_taken = True
                for batch in batches:
                    arrivals = self._arrivals.get(batch.number)  # None if its client has left
                    if arrivals is not None:
                        arrivals.add(batch.start, batch.events)
        except BaseException as error:  # whatever it is, a cancellation too, the requests must not wait for ever
            log.warning("the events of replica %s that come together are lost: %r", replica, error)
            for arrivals in [*self._arrivals.values()]:
                if arrivals.replica == replica:
                    arrivals.lose()
            if not isinstance(error, Exception):
                raise
        finally:
            del self._open[replica]
            if not is_taken:
                self._refused_until[replica] = time.monotonic() + REFUSED_SECONDS
