"""Locks of files, for which nobody waits longer than a limit."""

from __future__ import annotations

import fcntl
import time
from pathlib import Path

LOCK_SECONDS = 1.0  # a lock is held for a few writes
SHORT_LOCK_SECONDS = 0.1  # where a read waits for it
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.0005, 0.02


class LockedError(OSError):
    """Another process, or a thread that waits for the disk, holds the lock of a file for too long."""

    def __init__(self, path: Path, seconds: float):
        super().__init__(
            f"a process holds the lock of {path} for more than {seconds:g} s; find it with `lslocks`, and end it"
        )


def lock(file: int, kind: int, path: Path, seconds: float) -> None:
    """Lock an open file.

    Args:
        kind: ``fcntl.LOCK_SH`` or ``fcntl.LOCK_EX``.
        path: of the file, for the error.
        seconds: to wait at most.

    Raises:
        LockedError: it stays locked.
        OSError: the file system has no locks.
    """
    until, pause = time.monotonic() + seconds, FIRST_PAUSE_SECONDS
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise LockedError(path, seconds) from None
        else:
            return
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
