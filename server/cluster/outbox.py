"""Outboxes: events of all requests of an ingress, which go there together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from server.cluster.wire import Batch

IDLE_SECONDS = 2.0  # without events, after which a stream of them ends: a replica that is stopped waits for it


class Outboxes:
    """Batches of events by the ingress that they are for, each with one reader. Use it on one event loop."""

    def __init__(self) -> None:
        self._boxes: dict[str, _Outbox] = {}

    def put(self, receiver: str, batch: Batch) -> bool:
        """Add events of a request; return False if nobody takes those of this ingress."""
        box = self._boxes.get(receiver)
        if box is not None:
            box.put(batch)
        return box is not None

    async def take(self, receiver: str) -> AsyncGenerator[list[Batch], None]:
        """Yield the batches for an ingress, of which those of one turn of the event loop come together.

        The first item is empty. Ends if no events come for a while, or if another reader takes them.
        """
        box, before = _Outbox(), self._boxes.get(receiver)
        if before is not None:
            before.close()
        self._boxes[receiver] = box
        try:
            yield []
            while batches := await box.take():
                yield batches
        finally:
            if self._boxes.get(receiver) is box:
                del self._boxes[receiver]


class _Outbox:
    def __init__(self) -> None:
        self._batches: list[Batch] = []
        self._is_closed = False
        self._filled = asyncio.Event()

    def put(self, batch: Batch) -> None:
        self._batches.append(batch)
        self._filled.set()

    def close(self) -> None:
        """Let ``take`` return what is left, and then nothing."""
        self._is_closed = True
        self._filled.set()

    async def take(self) -> list[Batch]:
        """Wait for batches and return all of them; none if no events come for a while."""
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                await self._filled.wait()
        except TimeoutError:
            pass
        if not self._is_closed:
            self._filled.clear()
        batches, self._batches = self._batches, []
        return batches
