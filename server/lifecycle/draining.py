"""Draining: from the stop signal to the last response.

New requests are refused meanwhile, by ``accepting_model`` in ``server/api/core/service/service.py``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any

import uvicorn

from server.api.core.service.service import Service

ERROR_SECONDS = 1.0  # time for clients to read the error that ends their stream
CLOSE_SECONDS = 5.0  # time for the engine to end its step, and for the store to end its reads

log = logging.getLogger(__name__)


class Listener(uvicorn.Server):
    """A uvicorn server that handles no signals; uvicorn would close the socket, on which `/ready` reports draining."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def drain(service: Service, server: uvicorn.Server, seconds: float, hurried: asyncio.Future[None]) -> None:
    """Refuse new requests, and wait for running ones. Requests that take longer than ``seconds`` end with an error.

    Args:
        hurried: done when running requests are to end at once.
    """
    service.is_draining = True
    tasks = {task for task in server.server_state.tasks if task not in service.endless}
    if tasks:
        log.info(
            "draining for up to %g seconds; running requests: %d; press Ctrl-C again to end them now",
            seconds,
            len(tasks),
        )
    if not await _finish(tasks, seconds, hurried) and service.model is not None:
        log.warning("requests cut off by the shutdown: %d", sum(not task.done() for task in tasks))
        service.model.engine.halt()
        await _finish(tasks, ERROR_SECONDS)


async def close(work: Callable[[], None], hurried: asyncio.Future[None]) -> None:
    """Run the last work in a thread. A thread that hangs, such as in a read, is left behind."""
    closing = asyncio.create_task(asyncio.to_thread(work))
    await asyncio.wait((closing, hurried), timeout=CLOSE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    if closing.done():
        closing.result()
    elif not hurried.done():
        log.warning("stopping while a step is still running")


async def _finish(
    tasks: Iterable[asyncio.Task[None]], seconds: float, hurried: asyncio.Future[None] | None = None
) -> bool:
    """Wait for tasks. Return False if the time is over, or ``hurried`` is done, before they are."""
    tasks = [task for task in tasks if not task.done()]
    if not tasks:
        return True
    finishing = asyncio.ensure_future(asyncio.wait(tasks))
    first_of: list[asyncio.Future[Any]] = [finishing] if hurried is None else [finishing, hurried]
    await asyncio.wait(first_of, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    is_done = finishing.done()
    finishing.cancel()  # cancels the waiting, not the tasks
    return is_done
