"""A command in a terminal of its own, typed at and read."""

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
ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[a-zA-Z]|\][^\x07]*\x07|[=>])")
WHERE_IS_THE_CURSOR, IN_THE_CORNER = b"\x1b[6n", b"\x1b[1;1R"
# The shell leads a session, so that the terminal it opens becomes the one whose Ctrl-C reaches the command.
OPEN_TERMINAL = 'exec "$@" <"$TEST_TERMINAL" >"$TEST_TERMINAL" 2>&1'


class TerminalSession:
    """A running command and its terminal; what it wrote is read from front to back, without escapes."""

    def __init__(self, process: subprocess.Popen[bytes], terminal: int):
        self.process, self._terminal = process, terminal
        self.written = ""  # all of it, with escapes
        self._read_to = 0

    def type(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def wait_for(self, text: str) -> str:
        """Everything from the last place up to a text, which must come; the next wait begins behind it."""
        while True:
            plain = ESCAPES.sub("", self.written)
            found = plain.find(text, self._read_to)
            if found >= 0:
                start, self._read_to = self._read_to, found + len(text)
                return plain[start : self._read_to]
            assert self._read(), f"{text!r} never came after {plain[self._read_to :]!r}"

    def wait_for_end(self) -> int:
        """The exit status, once the command has ended by itself; what it still wrote is read."""
        status = self.process.wait(WAIT_SECONDS)
        while select.select([self._terminal], [], [], 0)[0] and self._read():
            pass
        return status

    def _read(self) -> bool:
        """Read more; False at the end, or if nothing comes."""
        if not select.select([self._terminal], [], [], WAIT_SECONDS)[0]:
            return False
        try:
            data = os.read(self._terminal, 1 << 16)
        except OSError:  # Linux' way to say that nobody holds the terminal any more
            return False
        for _ in range(data.count(WHERE_IS_THE_CURSOR)):
            os.write(self._terminal, IN_THE_CORNER)
        self.written += data.decode(errors="replace")
        return bool(data)


@contextmanager
def terminal_session(*arguments: str, environment: Mapping[str, str]) -> Iterator[TerminalSession]:
    """Start a `greenroom` command in a terminal, and end it afterwards, whatever happens."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    process = subprocess.Popen(
        ["/bin/sh", "-c", OPEN_TERMINAL, "sh", COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        env={
            **os.environ,
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
