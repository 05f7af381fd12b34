"""Single keys of a terminal."""

from __future__ import annotations

import os
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def single_keys(terminal: int) -> Iterator[None]:
    """Give keys at once and do not show them; afterwards the terminal is as it was."""
    before = termios.tcgetattr(terminal)
    try:
        tty.setcbreak(terminal)
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def read_keys(terminal: int) -> str:
    """The keys that were pressed; empty once the terminal is gone."""
    try:
        return os.read(terminal, 1024).decode(errors="replace")
    except OSError:
        return ""
