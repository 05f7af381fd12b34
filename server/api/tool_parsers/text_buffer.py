"""A buffer of text that arrives in parts, which readers read as if the text were complete.

A reader is a generator: it yields deltas of the turn, and None when it needs more text than has arrived. The deltas
depend on the text only, not on where it was split.
"""

import re
from collections.abc import Callable, Generator
from typing import TypeVar

from server.api.core.replies.deltas import Delta

T = TypeVar("T")
Steps = Generator[Delta | None, None, T]


class Stops:
    """Texts that end a piece of text. No stop may begin inside another, unless both end together."""

    def __init__(self, *texts: str) -> None:
        self._pattern = re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)")
        self._beginnings = {text[:length] for text in texts for length in range(1, len(text))}
        self._longest = max(map(len, self._beginnings), default=0)

    def search(self, text: str) -> re.Match[str] | None:
        """Return the first stop in a text."""
        return self._pattern.search(text)

    def num_waiting(self, text: str) -> int:
        """Return the length of the longest suffix of a text that may be the beginning of a stop."""
        for length in range(min(self._longest, len(text)), 0, -1):
            if text[-length:] in self._beginnings:
                return length
        return 0


class TextBuffer:
    """The text of one turn, and the position up to which it was read."""

    def __init__(self) -> None:
        self._text, self._place = "", 0
        self._mark: int | None = None
        self.is_over = self.is_cut = False

    def feed(self, text: str) -> None:
        start = self._place if self._mark is None else self._mark
        self._text = self._text[start:] + text
        self._place -= start
        self._mark = None if self._mark is None else 0

    def end(self, *, is_cut: bool = False) -> None:
        """Mark the text as complete, or as cut off by the token limit."""
        self.is_over, self.is_cut = True, is_cut

    def mark(self) -> None:
        """Remember this position; it replaces an earlier one."""
        self._mark = self._place

    def unmark(self) -> None:
        self._mark = None

    def rewind(self) -> None:
        """Go back to the marked position, if there is one."""
        if self._mark is not None:
            self._place, self._mark = self._mark, None

    @property
    def is_cut_here(self) -> bool:
        """True if the token limit cut the text off at this position."""
        return self.is_cut and self._place == len(self._text)

    @property
    def ahead(self) -> str:
        """The text that has arrived and was not read."""
        return self._text[self._place :]

    def read(self, length: int) -> str:
        """Read ``length`` characters that have arrived."""
        self._place += length
        return self._text[self._place - length : self._place]

    def unread(self, text: str) -> None:
        """Go back to before ``text``, which was just read."""
        self._place -= len(text)

    def peek(self) -> Steps[str]:
        """Return the next character without reading it; empty at the end."""
        while self._place == len(self._text) and not self.is_over:
            yield None
        return self._text[self._place : self._place + 1]

    def take(self, text: str) -> Steps[bool]:
        """Read ``text`` if it is next; a beginning of it, where the text was cut off, is read but does not count."""
        while True:
            ahead = self._text[self._place : self._place + len(text)]
            if ahead == text:
                self._place += len(text)
                return True
            if self.is_cut and text.startswith(ahead):
                self._place += len(ahead)
            if self.is_over or not text.startswith(ahead):
                return False
            yield None

    def skip_space(self) -> Steps[None]:
        while True:
            ahead = self.ahead
            self._place += len(ahead) - len(ahead.lstrip())
            if self._place < len(self._text) or self.is_over:
                return
            yield None

    def collect(self, stops: Stops, *, drops_cut_stop: bool = False) -> Steps[tuple[str, str]]:
        """Read up to and including a stop; return the text and the stop, which is empty at the end.

        Args:
            drops_cut_stop: leave out the beginning of a stop where the text was cut off.

        """
        parts: list[str] = []
        while True:
            text, stop = self._next(stops, drops_cut_stop)
            parts.append(text)
            if stop is not None:
                return "".join(parts), stop
            yield None

    def stream(
        self,
        stops: Stops,
        make: Callable[[str], Delta],
        before: str = "",
        *,
        holds_space: bool = False,
        drops_cut_stop: bool = False,
    ) -> Steps[tuple[str, str]]:
        """Yield the text up to a stop as it arrives.

        Args:
            make: makes a delta of some text.
            before: text to put before it.
            holds_space: do not yield white space before the stop.
            drops_cut_stop: leave out the beginning of a stop where the text was cut off.

        Returns:
            That white space, and the stop, which is empty at the end.

        """
        while True:
            text, stop = self._next(stops, drops_cut_stop)
            text = before + text
            shown = text.rstrip() if holds_space else text
            before = text[len(shown) :]
            if shown:
                yield make(shown)
            if stop is not None:
                return before, stop
            yield None

    def _next(self, stops: Stops, drops_cut_stop: bool) -> tuple[str, str | None]:
        """Read the text that is certainly before a stop, and the stop; the stop is None until it has arrived."""
        ahead = self.ahead
        found = stops.search(ahead)
        if found is not None:
            self.read(found.end())
            return ahead[: found.start()], found.group()
        certain = len(ahead) - stops.num_waiting(ahead)
        if self.is_over:
            text = self.read(len(ahead))
            return text[:certain] if self.is_cut and drops_cut_stop else text, ""
        return self.read(certain), None
