"""Text that may be sent: never a part of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from .detokenizer import Detokenizer


class TextAssembler:
    """A detokenizer that also watches for stop strings and holds back what may become one."""

    def __init__(self, detokenizer: Detokenizer, stop: Sequence[str]):
        self._detokenizer = detokenizer
        self._stop = stop
        self._held = ""
        self.num_characters = 0  # decoded so far, sent or held back
        self.stopped_by: str | None = None  # the stop string that has ended the text

    @property
    def is_stopped(self) -> bool:
        return self.stopped_by is not None

    def push(self, token_id: int, *, may_stop: bool = True) -> str:
        """Text that may be sent now. After a stop string ``is_stopped`` is true and nothing more comes.

        A stop string that is complete while none may stop the text is text like any other.
        """
        return self._take(self._detokenizer.push(token_id), may_stop=may_stop, is_last=False)

    def flush(self) -> str:
        """The rest, at the end of the sequence."""
        return "" if self.is_stopped else self._take(self._detokenizer.flush(), may_stop=True, is_last=True)

    def _take(self, new: str, *, may_stop: bool, is_last: bool) -> str:
        self.num_characters += len(new)
        text = self._held + new
        found = self._first_stop(text) if may_stop and new else None
        if found is not None:
            start, self.stopped_by = found
            self._held = ""
            return text[:start]
        keep = 0 if is_last else max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _first_stop(self, text: str) -> tuple[int, str] | None:
        """The stop string that is complete first in the new part of a text, and before it where it begins."""
        ends = []
        for stop in self._stop:
            position = text.find(stop, max(0, len(self._held) - len(stop) + 1))
            if position >= 0:
                ends.append((position + len(stop), position, stop))
        return min(ends)[1:] if ends else None


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a beginning of ``stop``, but not all of it."""
    position = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while position >= 0 and not stop.startswith(text[position:]):
        position = text.find(stop[0], position + 1)
    return len(text) - position if position >= 0 else 0
