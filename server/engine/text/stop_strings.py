"""Detection of stop strings in generated text."""

from __future__ import annotations

from collections.abc import Sequence

from server.engine.text.detokenizer import Detokenizer


class TextAssembler:
    """Detokenises, ends the text at a stop string, and holds back text that may become one."""

    def __init__(self, detokenizer: Detokenizer, stop: Sequence[str]):
        self._detokenizer = detokenizer
        self._stop = stop
        self._held = ""
        self.num_characters = 0  # decoded characters, sent or held back
        self.stopped_by: str | None = None  # the stop string that ended the text

    @property
    def can_stop(self) -> bool:
        """True if there are stop strings."""
        return bool(self._stop)

    @property
    def is_stopped(self) -> bool:
        return self.stopped_by is not None

    def push(self, token_id: int, *, may_stop: bool = True) -> str:
        """Add a token and return the text that may be sent now. A stop string sets ``is_stopped`` and ends the text.

        Args:
            may_stop: if False, a stop string that this token completes is ordinary text.
        """
        return self._take(self._detokenizer.push(token_id), may_stop=may_stop, is_last=False)

    def flush(self) -> str:
        """Return the rest of the text, at the end of the sequence."""
        return "" if self.is_stopped else self._take(self._detokenizer.flush(), may_stop=True, is_last=True)

    def _take(self, new: str, *, may_stop: bool, is_last: bool) -> str:
        self.num_characters += len(new)
        if not self._stop:
            return new
        text = self._held + new
        found = self._first_stop(text) if may_stop and new else None
        if found is not None:
            start, self.stopped_by = found
            self._held = ""
            return text[:start]
        keep = 0 if is_last else max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _first_stop(self, text: str) -> tuple[int, str] | None:
        """Return the start of the stop string that is completed first in the new part of a text, and the string."""
        ends = []
        for stop in self._stop:
            position = text.find(stop, max(0, len(self._held) - len(stop) + 1))
            if position >= 0:
                ends.append((position + len(stop), position, stop))
        return min(ends)[1:] if ends else None


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest suffix of ``text`` that is a proper prefix of ``stop``."""
    position = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while position >= 0 and not stop.startswith(text[position:]):
        position = text.find(stop[0], position + 1)
    return len(text) - position if position >= 0 else 0
