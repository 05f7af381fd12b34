"""Comments that keep a silent stream alive: proxies and clients close connections that carry nothing for too long."""

import asyncio
from collections.abc import Callable

COMMENT = b": keep-alive\n\n"  # clients ignore lines that begin with a colon


class KeepAlive:
    """Tells when a stream must send a comment. Its timer runs once in an interval, not for each token.

    Args:
        interval_seconds: the longest silence; 0 allows any.
        wake: called when a comment becomes due.

    """

    def __init__(self, interval_seconds: float, wake: Callable[[], None]) -> None:
        self._interval_seconds, self._wake = interval_seconds, wake
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self.is_due = False
        self.note_sent()
        if interval_seconds:
            self._schedule(interval_seconds)

    def note_sent(self) -> None:
        """Begin a new interval; call it after anything is sent."""
        self._sent_at, self.is_due = self._loop.time(), False

    def stop(self) -> None:
        """Stop the timer, at the end of the stream."""
        if self._timer is not None:
            self._timer.cancel()

    def _schedule(self, delay_seconds: float) -> None:
        self._timer = self._loop.call_later(delay_seconds, self._check)

    def _check(self) -> None:
        left = self._sent_at + self._interval_seconds - self._loop.time()
        if left <= 0:
            self.is_due = True
            self._wake()
        self._schedule(left if left > 0 else self._interval_seconds)
