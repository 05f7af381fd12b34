"""Single key presses of a terminal."""

from __future__ import annotations

import os
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def single_keys(terminal: int) -> Iterator[None]:
    """Read keys without Enter and without echo; restore the terminal afterwards."""
    before = termios.tcgetattr(terminal)
    try:
        tty.setcbreak(terminal)
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def read_keys(terminal: int) -> str:
    """Return the pressed keys; empty if the terminal is closed."""
    try:
        return os.read(terminal, 1024).decode(errors="replace")
    except OSError:
        return ""
