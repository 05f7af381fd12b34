"""Where answers go: a terminal, or plain text into a pipe."""

from __future__ import annotations

import sys

from rich.console import Console, RenderableType

from client.terminal import printable


class Screen:
    """Writes what is said; into a pipe (``is_plain``) answers alone, and what commands were asked for."""

    def __init__(self, *, is_plain: bool):
        self.is_plain = is_plain
        self._out = Console(highlight=False, no_color=True if is_plain else None)
        self._err = Console(highlight=False, stderr=True)
        self._is_thinking = False
        self._column_is_zero = True

    def write(self, text: str) -> None:
        """A piece of an answer."""
        if self._is_thinking:
            self._is_thinking = False
            self._put("\n\n")
        self._put(text)

    def think(self, text: str) -> None:
        """A piece of what the model thinks before it answers; a pipe does not get it."""
        if not self.is_plain and text:
            self._is_thinking = True
            self._put(text, "dim italic")

    def end_answer(self) -> None:
        self._is_thinking = False
        if not self._column_is_zero:
            self._put("\n")

    def note(self, line: str) -> None:
        """Tell the user something beside the answer."""
        if not self.is_plain:
            self._out.print(printable(line), style="dim", markup=False)

    def show(self, what: RenderableType) -> None:
        """Something that a command was asked for."""
        self._out.print(what)

    def complain(self, line: str) -> None:
        """One line on standard error."""
        self._out.file.flush()
        named = f"greenroom: {line}" if self.is_plain else line
        self._err.print(printable(named), style="red", markup=False, soft_wrap=True)

    def _put(self, text: str, style: str | None = None) -> None:
        if text:
            self._column_is_zero = text.endswith("\n")
            self._out.out(printable(text), style=style, end="", highlight=False)
            self._out.file.flush()


def prepare_streams() -> None:
    """Text that the terminal's encoding lacks is replaced, coming and going, rather than ending the program."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
