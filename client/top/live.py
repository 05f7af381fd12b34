"""The live view on a terminal."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Awaitable, Callable

from rich.console import Console
from rich.live import Live

from client.async_client import AsyncClient
from client.errors import (
    AuthenticationError,
    BadRequestError,
    GreenroomError,
    InvalidReplyError,
    NotFoundError,
    PermissionDeniedError,
    ServerUnavailableError,
)
from client.top.keys import read_keys, single_keys
from client.top.monitor import Monitor, has_requests
from client.top.weights_table import Weights

RECONNECT_SECONDS = 1.0
# Errors that a retry cannot resolve.
PERMANENT_ERRORS = (AuthenticationError, BadRequestError, InvalidReplyError, NotFoundError, PermissionDeniedError)


async def follow(
    client: AsyncClient,
    interval: float,
    monitor: Monitor,
    redraw: Callable[[], None],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Show every frame, and reconnect after failures, until cancelled.

    Raises:
        GreenroomError: If the server refuses the request, or the first connection fails.
    """
    has_connected = False
    while True:
        try:
            async for frame in client.watch_experts(interval):
                has_connected = True
                requests = await client.requests() if has_requests(frame) else []
                weights = Weights(await client.variants(), await client.adapters()) if monitor.shows_weights else None
                monitor.add_frame(frame, time.monotonic(), requests, weights)
                redraw()
        except PERMANENT_ERRORS:
            raise
        except GreenroomError as error:
            if not (has_connected or isinstance(error, ServerUnavailableError)):
                raise
            monitor.set_problem(" ".join(str(error).split()))
            redraw()
        await sleep(RECONNECT_SECONDS)


async def watch(client: AsyncClient, interval: float, monitor: Monitor) -> None:
    """Show a server on this terminal until q, Ctrl-C, or the terminal is closed.

    Raises:
        GreenroomError: As ``follow``.
    """
    console, terminal, loop = Console(highlight=False), sys.stdin.fileno(), asyncio.get_running_loop()
    with single_keys(terminal), Live(console=console, screen=True, auto_refresh=False) as live:

        def redraw() -> None:
            live.update(monitor.render(console.height), refresh=True)

        def handle_keys() -> None:
            keys = read_keys(terminal)
            if not keys or "q" in keys:
                following.cancel()
            elif "p" in keys:
                monitor.toggle_pause()
                redraw()
            elif "v" in keys:
                monitor.toggle_weights()
                redraw()

        redraw()
        following = asyncio.create_task(follow(client, interval, monitor, redraw))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, following.cancel)
        loop.add_signal_handler(signal.SIGWINCH, redraw)
        loop.add_reader(terminal, handle_keys)
        try:
            await asyncio.wait([following])
        finally:
            loop.remove_reader(terminal)
    if not following.cancelled():
        following.result()
