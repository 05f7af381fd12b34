"""From the signal that says stop to the last response."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any

import uvicorn

from server.api.service import Service

LAST_WORDS_SECONDS = 1.0  # that clients get to take the error which their stream was ended with
CLOSE_SECONDS = 5.0  # that the engine gets to end its step, and the store its reads
SIGNALS = (signal.SIGINT, signal.SIGTERM)

log = logging.getLogger(__name__)


class StopSignals:
    """SIGINT and SIGTERM: the first asks for an end, the second for one at once; made within a running loop.

    ``asked`` and ``hurried`` are done once they came.
    """

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.asked: asyncio.Future[None] = loop.create_future()
        self.hurried: asyncio.Future[None] = loop.create_future()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._note)

    def _note(self) -> None:
        for future in (self.asked, self.hurried):
            if not future.done():
                future.set_result(None)
                return


class Listener(uvicorn.Server):
    """Leaves signals alone: at the first, uvicorn would close the socket on which `/ready` tells of draining."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def drain(service: Service, server: uvicorn.Server, seconds: float, hurried: asyncio.Future[None]) -> None:
    """Take no new work, and wait for what was begun; what is not done in time ends with an error.

    Args:
        seconds: that it may take.
        hurried: done when it is to end at once.
    """
    service.is_draining = True
    tasks = {task for task in server.server_state.tasks if task not in service.endless}
    if tasks:
        log.info(
            "draining for up to %g seconds; requests in flight: %d; a second signal ends them", seconds, len(tasks)
        )
    if not await _finish(tasks, seconds, hurried) and service.model is not None:
        log.warning("requests that end unfinished: %d", sum(not task.done() for task in tasks))
        service.model.engine.halt()
        await _finish(tasks, LAST_WORDS_SECONDS)


async def close(work: Callable[[], None], hurried: asyncio.Future[None]) -> None:
    """Do the last work in a thread; one that hangs, in a read say, is left behind."""
    closing = asyncio.create_task(asyncio.to_thread(work))
    await asyncio.wait((closing, hurried), timeout=CLOSE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    if closing.done():
        closing.result()
    elif not hurried.done():
        log.warning("ending without the step that still runs")


async def _finish(
    tasks: Iterable[asyncio.Task[None]], seconds: float, hurried: asyncio.Future[None] | None = None
) -> bool:
    """Wait for all of some tasks; False if they were not done in time, or before the hurry."""
    tasks = [task for task in tasks if not task.done()]
    if not tasks:
        return True
    finishing = asyncio.ensure_future(asyncio.wait(tasks))
    first_of: list[asyncio.Future[Any]] = [finishing] if hurried is None else [finishing, hurried]
    await asyncio.wait(first_of, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    is_done = finishing.done()
    finishing.cancel()  # the waiting, not the tasks
    return is_done
