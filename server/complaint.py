"""How a command ends when something is wrong."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

FAILURE, WRONG_USAGE = 1, 2
INTERRUPTED = 130  # what a shell gives a command that Ctrl-C ended


def complain(error: Exception, status: int) -> int:
    """Say in one line on standard error what is wrong; gives the exit status back."""
    return say(" ".join(str(error).split()), status)


def say(line: str, status: int) -> int:
    """Say how it ended on standard error; gives the exit status back."""
    sys.stderr.write(f"greenroom: {line}\n")
    return status


@contextmanager
def ending_at_once(line: str) -> Iterator[None]:
    """Let Ctrl-C end the process with a line while the context lasts; threads that download would be waited for."""
    before = signal.signal(signal.SIGINT, lambda *_: os._exit(say(line, INTERRUPTED)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
