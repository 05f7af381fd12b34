"""Where answers go: a terminal, or plain text into a pipe."""

from __future__ import annotations

import sys

from rich.console import Console, RenderableType
from rich.style import Style

from client.chat.wrapping import WordWrap
from client.terminal import printable

THINKING = Style(dim=True, italic=True)


class Screen:
    """Writes what is said; into a pipe (``is_plain``) answers alone, and what commands were asked for."""

    def __init__(self, *, is_plain: bool):
        self.is_plain = is_plain
        self._out = Console(highlight=False, no_color=True if is_plain else None)
        self._err = Console(highlight=False, stderr=True)
        self._wrap = WordWrap()
        self._style: Style | None = None
        self._is_line_open = False

    def write(self, text: str) -> None:
        """A piece of an answer."""
        self._say(text, None)

    def think(self, text: str) -> None:
        """A piece of what the model thinks before it answers; a pipe does not get it."""
        if not self.is_plain:
            self._say(text, THINKING)

    def end_answer(self) -> None:
        """The next answer begins on a line of its own."""
        if self._is_line_open:
            self._put("\n")
        self._wrap, self._style = WordWrap(), None

    def note(self, line: str) -> None:
        """Tell the user something beside the answer."""
        if not self.is_plain:
            self._out.print(printable(line), style="dim", markup=False)

    def show(self, what: RenderableType) -> None:
        """Something that a command was asked for."""
        self._out.print(what, soft_wrap=self.is_plain)

    def complain(self, line: str) -> None:
        """One line on standard error."""
        named = f"greenroom: {line}" if self.is_plain else line
        self._err.print(printable(named), style="red", markup=False, soft_wrap=True)

    def _say(self, text: str, style: Style | None) -> None:
        if not text:
            return
        if style != self._style:
            if self._is_line_open:
                self._put("\n\n")
            self._wrap, self._style = WordWrap(), style
        shown = printable(text)
        self._put(shown if self.is_plain else self._wrap.feed(shown, self._out.width))

    def _put(self, shown: str) -> None:
        if not shown:
            return
        self._is_line_open = not shown.endswith("\n")
        try:
            # Not by the console: Ctrl-C while it writes would leave the piece in its buffer, to be written again.
            self._out.file.write(shown if self._style is None else self._style.render(shown))
            self._out.file.flush()
        except BrokenPipeError:
            self._out.on_broken_pipe()


def prepare_streams() -> None:
    """Text that the terminal's encoding lacks is replaced, coming and going, rather than ending the program."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
