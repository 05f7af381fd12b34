"""A log handler whose callers never wait for whoever reads the log."""

from __future__ import annotations

import logging
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Callable

from tqdm import tqdm

MAX_WAITING_BYTES = 4 << 20  # of lines that are yet to be written; more are dropped
FLUSH_SECONDS = 1.0  # that the end of the process waits for them
DROPPED = "lines of the log that were dropped, because nobody read them: %d"

Write = Callable[[str], None]


class BackgroundHandler(logging.Handler):
    """Formats lines in the thread that logs them, and writes them in a thread of its own.

    While the reader of a pipe stops, or a terminal is paused, lines wait. Beyond ``max_bytes`` they are dropped and
    counted, and a line of the log tells how many as soon as there is room.

    Args:
        write: writes a line; it may block for ever, or raise OSError if the line can't be written.
    """

    def __init__(self, write: Write, max_bytes: int = MAX_WAITING_BYTES):
        super().__init__()
        self.num_dropped = 0
        self._write, self._max_bytes = write, max_bytes
        self._lines: deque[str] = deque()
        self._num_bytes = 0  # of the lines that wait or are being written
        self._num_untold = 0  # dropped lines that no line of the log has told of
        self._changed = threading.Condition()  # guards everything above
        threading.Thread(target=self._work, name="log-writer", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception as error:  # noqa: BLE001  logging's own answer is to write to standard error, which may block
            line = f"a line of the log can't be formatted ({error!r}): {record.msg!r}"
        with self._changed:
            if self._num_bytes and self._num_bytes + len(line) > self._max_bytes:
                self.num_dropped += 1
                self._num_untold += 1
                return
            self._tell_dropped()
            self._put(line)

    def flush(self) -> None:
        """Wait until all lines are written, but not for long."""
        with self._changed:
            self._changed.wait_for(lambda: not self._num_bytes, FLUSH_SECONDS)

    def _put(self, line: str) -> None:
        self._lines.append(line)
        self._num_bytes += len(line)
        self._changed.notify_all()

    def _tell_dropped(self) -> None:
        if self._num_untold:
            record = logging.LogRecord(__name__, logging.WARNING, "", 0, DROPPED, (self._num_untold,), None)
            self._num_untold = 0
            self._put(self.format(record))

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines)
                line = self._lines.popleft()
            is_written = True
            try:
                self._write(line)
            except (OSError, ValueError):  # the reader is gone, the disk is full, or the stream is closed
                is_written = False
            with self._changed:
                self._num_bytes -= len(line)
                self.num_dropped += not is_written
                if not self._lines:
                    self._tell_dropped()
                self._changed.notify_all()


def write_above_progress_bars(line: str) -> None:
    """Write a line to the terminal."""
    tqdm.write(line, sys.stderr)


def write_to_standard_error(line: str) -> None:
    """Write a line to standard error, past Python's buffers and their locks."""
    write_fully(sys.stderr.fileno(), f"{line}\n".encode(errors="backslashreplace"))


def write_fully(file: int, data: bytes) -> None:
    """Write all bytes to a file or pipe, waiting while it takes none.

    Raises:
        OSError: it can't be written.
    """
    while data:
        try:
            data = data[os.write(file, data) :]
        except BlockingIOError:  # another process has made the pipe non-blocking for all
            select.select([], [file], [])
