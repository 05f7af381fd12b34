"""A `greenroom` command in a pseudo-terminal, for tests that type keys and read the output."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tests.e2e.processes import COMMAND

ROWS, COLUMNS = 30, 100
WAIT_SECONDS = 30
SIZE_VARIABLES = {"COLUMNS", "LINES"}  # pytest-xdist sets them; rich prefers them to the size of the terminal
ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[a-zA-Z]|\][^\x07]*\x07|[=>])")
CURSOR_QUERY, CURSOR_REPORT = b"\x1b[6n", b"\x1b[1;1R"
# The shell is a session leader, so the terminal that it opens becomes the controlling one: Ctrl-C reaches the command.
OPEN_TERMINAL = 'exec "$@" <"$TEST_TERMINAL" >"$TEST_TERMINAL" 2>&1'


class TerminalSession:
    """A running command and its terminal. Output is searched from front to back, without escapes."""

    def __init__(self, process: subprocess.Popen[bytes], terminal: int):
        self.process, self._terminal = process, terminal
        self.written = ""  # all output, with escapes
        self._read_to = 0

    def type(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def wait_for(self, text: str) -> str:
        """Wait for a text and return the output from the last position to its end; the next wait starts there."""
        while True:
            plain = ESCAPES.sub("", self.written)
            found = plain.find(text, self._read_to)
            if found >= 0:
                start, self._read_to = self._read_to, found + len(text)
                return plain[start : self._read_to]
            assert self._read(), f"{text!r} did not appear after {plain[self._read_to :]!r}"

    def wait_for_end(self) -> int:
        """Wait for the command to exit, read the rest of its output, and return the exit status."""
        status = self.process.wait(WAIT_SECONDS)
        while select.select([self._terminal], [], [], 0)[0] and self._read():
            pass
        return status

    def _read(self) -> bool:
        """Read more output. Return False at the end, or after a timeout."""
        if not select.select([self._terminal], [], [], WAIT_SECONDS)[0]:
            return False
        try:
            data = os.read(self._terminal, 1 << 16)
        except OSError:  # Linux raises EIO once no process has the terminal open
            return False
        for _ in range(data.count(CURSOR_QUERY)):
            os.write(self._terminal, CURSOR_REPORT)
        self.written += data.decode(errors="replace")
        return bool(data)


@contextmanager
def terminal_session(*arguments: str, environment: Mapping[str, str]) -> Iterator[TerminalSession]:
    """Start a `greenroom` command in a terminal, and kill it at the end if it still runs."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    process = subprocess.Popen(
        ["/bin/sh", "-c", OPEN_TERMINAL, "sh", COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        env={
            **{name: value for name, value in os.environ.items() if name not in SIZE_VARIABLES},
            "TERM": "xterm-256color",
            "TEST_TERMINAL": os.ttyname(theirs),
            **environment,
        },
    )
    try:
        yield TerminalSession(process, ours)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(theirs)
        os.close(ours)
