"""Tokens to text as they come: never half a character, never a part of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[list[int]], str]
REPLACEMENT = "\ufffd"  # what a decoder gives for bytes that are not yet a character
PROMPT_TAIL = 6  # tokens of the prompt that the first generated ones are decoded with


class Detokenizer:
    """Decodes one sequence token by token.

    Text depends on neighbours (leading spaces, characters of several bytes), so a short window is decoded with and
    without the new tokens, and the difference is what is new.
    """

    def __init__(self, decode: Decode, prompt_ids: Sequence[int]):
        self._decode = decode
        self._window = list(prompt_ids[-PROMPT_TAIL:])
        self._num_emitted = len(self._window)  # tokens of the window whose text is out

    def push(self, token_id: int) -> str:
        """The text that a new token completes; empty while a character is incomplete."""
        self._window.append(token_id)
        return self._new_text(is_last=False)

    def flush(self) -> str:
        """What is left at the end, an incomplete character as it decodes."""
        return self._new_text(is_last=True)

    def _new_text(self, *, is_last: bool) -> str:
        before = self._decode(self._window[: self._num_emitted])
        after = self._decode(self._window)
        if after.endswith(REPLACEMENT) and not is_last:
            return ""
        self._window = self._window[max(0, self._num_emitted - PROMPT_TAIL) :]
        self._num_emitted = len(self._window)
        return after[len(before) :]


class TextAssembler:
    """A detokenizer that also watches for stop strings and holds back what may become one."""

    def __init__(self, detokenizer: Detokenizer, stop: Sequence[str]):
        self._detokenizer = detokenizer
        self._stop = stop
        self._held = ""
        self.num_characters = 0  # decoded so far, sent or held back
        self.is_stopped = False

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
            self.is_stopped, self._held = True, ""
            return text[:found]
        keep = 0 if is_last else max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _first_stop(self, text: str) -> int | None:
        """Where the stop string begins that is complete first in the new part of a text."""
        ends = []
        for stop in self._stop:
            position = text.find(stop, max(0, len(self._held) - len(stop) + 1))
            if position >= 0:
                ends.append((position + len(stop), position))
        return min(ends)[1] if ends else None


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a beginning of ``stop``, but not all of it."""
    position = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while position >= 0 and not stop.startswith(text[position:]):
        position = text.find(stop[0], position + 1)
    return len(text) - position if position >= 0 else 0
