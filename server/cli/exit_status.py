"""Exit statuses of the commands, and the line on standard error that goes with them."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

FAILURE, WRONG_USAGE = 1, 2
INTERRUPTED = 130  # the status that shells give a command which Ctrl-C ended


def fail(error: Exception, status: int) -> int:
    """Print an error as one line, and return the exit status."""
    return finish(" ".join(str(error).split()), status)


def finish(line: str, status: int) -> int:
    """Print the result of a command after what it has logged, and return the exit status."""
    for handler in logging.getLogger().handlers:
        handler.flush()
    sys.stderr.write(f"greenroom: {line}\n")
    return status


def open_standard_streams() -> None:
    """Open the standard streams that the caller has closed, so that no file or socket gets their numbers."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            file = os.open(os.devnull, os.O_RDWR)
            if file != number:
                os.dup2(file, number)
                os.close(file)
            setattr(sys, name, os.fdopen(number, mode))


class QuickExit:
    """Ends the process after all that runs at its end, without freeing each object, which takes 0.25 s with torch.

    It must be made before anything else registers what runs at the end.
    """

    def __init__(self) -> None:
        self._status: int | None = None
        atexit.register(self._leave)

    def with_status(self, code: object) -> None:
        """Let the process end quickly, if the code of its ``SystemExit`` is a status and no message."""
        self._status = 0 if code is None else code if isinstance(code, int) else None

    def _leave(self) -> None:
        if self._status is None:
            return
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # closed, or its reader has gone away
                stream.flush()
        os._exit(self._status)


@contextmanager
def exit_on_interrupt(line: str) -> Iterator[None]:
    """Exit at once on Ctrl-C, with a line. Python would wait for download threads to end."""
    before = signal.signal(signal.SIGINT, lambda *_: os._exit(finish(line, INTERRUPTED)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def exit_on_closed_pipe() -> Iterator[None]:
    """Exit without a traceback if the reader of standard output goes away, as `head` does."""
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes again when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILURE)
