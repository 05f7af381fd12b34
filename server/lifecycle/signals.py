"""The signals that the server knows. A signal that it does not know would end it without draining."""

from __future__ import annotations

import asyncio
import select
import signal
import sys
from collections.abc import Coroutine
from typing import Any

from server.lifecycle.reload_hooks import SIGHUP, ReloadHooks

STOP = (signal.SIGINT, signal.SIGTERM)
IGNORED = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)  # SIGHUP until ``Signals`` handles it


def ignore_signals() -> None:
    """Ignore the signals that have no meaning yet, or none at all; processes that are started inherit it."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)


class Signals:
    """Handlers of SIGINT, SIGTERM and SIGHUP. A running event loop is needed.

    The first SIGINT or SIGTERM drains the server, the second stops it at once: ``asked`` and ``hurried`` are done
    then. SIGHUP runs the hooks; if the server was started on a terminal and the terminal is gone, it drains.
    """

    def __init__(self, hooks: ReloadHooks) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self.asked: asyncio.Future[None] = loop.create_future()
        self.hurried: asyncio.Future[None] = loop.create_future()
        self._hooks, self._tasks = hooks, set[asyncio.Task[None]]()
        self._terminals = [file.fileno() for file in (sys.stdin, sys.stdout, sys.stderr) if file.isatty()]
        for number in STOP:
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)

    def _stop(self) -> None:
        for future in (self.asked, self.hurried):
            if not future.done():
                future.set_result(None)
                return

    def _hang_up(self) -> None:
        if any(map(_has_hung_up, self._terminals)):
            self._stop()
        else:
            self._start(self._hooks.run(SIGHUP))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)  # the loop itself does not keep it
        task.add_done_callback(self._tasks.discard)


def _has_hung_up(terminal: int) -> bool:
    poll = select.poll()
    poll.register(terminal, 0)
    return any(events & (select.POLLHUP | select.POLLERR | select.POLLNVAL) for _, events in poll.poll(0))
