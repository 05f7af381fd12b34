"""Output of the chat: styled on a terminal, plain text otherwise."""

from __future__ import annotations

import sys

from rich.console import Console, RenderableType
from rich.style import Style

from client.chat.wrapping import WordWrap
from client.terminal import printable

REASONING_STYLE = Style(dim=True, italic=True)


class Screen:
    """Writes answers, notes and errors. If ``is_plain``, only answers, output of commands and errors are written."""

    def __init__(self, *, is_plain: bool):
        self.is_plain = is_plain
        self._out = Console(highlight=False, no_color=True if is_plain else None)
        self._err = Console(highlight=False, stderr=True)
        self._wrap = WordWrap()
        self._style: Style | None = None
        self._is_line_open = False

    def write(self, text: str) -> None:
        """Write a chunk of an answer."""
        self._write_styled(text, None)

    def write_reasoning(self, text: str) -> None:
        """Write a chunk of reasoning; plain output omits it."""
        if not self.is_plain:
            self._write_styled(text, REASONING_STYLE)

    def end_answer(self) -> None:
        """End the line of an answer."""
        if self._is_line_open:
            self._put("\n")
        self._wrap, self._style = WordWrap(), None

    def note(self, line: str) -> None:
        """Show a dim line of information; plain output omits it."""
        if not self.is_plain:
            self._out.print(printable(line), style="dim", markup=False)

    def show(self, what: RenderableType) -> None:
        """Show the output of a command."""
        self._out.print(what, soft_wrap=self.is_plain)

    def error(self, line: str) -> None:
        """Write one line to standard error."""
        prefixed = f"greenroom: {line}" if self.is_plain else line
        self._err.print(printable(prefixed), style="red", markup=False, soft_wrap=True)

    def _write_styled(self, text: str, style: Style | None) -> None:
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
            # Bypasses the console: after Ctrl-C its buffer would keep the chunk and write it twice.
            self._out.file.write(shown if self._style is None else self._style.render(shown))
            self._out.file.flush()
        except BrokenPipeError:
            self._out.on_broken_pipe()


def prepare_streams() -> None:
    """Replace characters that the terminal's encoding lacks, in input and output, instead of raising errors."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
