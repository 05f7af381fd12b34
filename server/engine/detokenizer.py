"""Token ids to text as they come: whole characters, the same text as if all tokens were decoded at once."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from server.model.token_bytes import TokenBytes

REPLACEMENT = "\ufffd"  # what a decoder gives for bytes that are no character, or not yet
MOST_WAITING = 3  # bytes of a character that is not complete
CONTEXT, WINDOW = 8, 16  # tokens


class Detokenizer(Protocol):
    """Decodes one sequence token by token."""

    def push(self, token_id: int) -> str:
        """The text that a new token completes; empty while a character is incomplete."""

    def flush(self) -> str:
        """What is left at the end, an incomplete character as it decodes."""


class ByteDetokenizer:
    """Strings the bytes of tokens together; at most the three first bytes of a character wait for its last.

    Its text is what the tokenizer decodes, with one exception: where bytes of single-byte tokens are not UTF-8, the
    tokenizers library also replaces complete characters beside them, and here these stay.

    Args:
        tokens: the vocabulary.
        prompt_ids: what the text follows; characters that the prompt leaves incomplete are completed.
        written: special tokens that are text nevertheless.
    """

    def __init__(self, tokens: TokenBytes, prompt_ids: Sequence[int], written: Collection[int] = ()):
        self._tokens, self._written = tokens, written
        self._is_at_start = bool(tokens.rules.vanishing or tokens.rules.num_spaces)
        self._num_spaces = tokens.rules.num_spaces
        self._utf8 = codecs.getincrementaldecoder("utf-8")(tokens.errors)
        tail = b""
        for token_id in reversed(prompt_ids):
            if len(tail) > MOST_WAITING:
                break
            tail = self._bytes_of(token_id) + tail
        self._utf8.decode(tail)
        self._due = self._utf8.getstate()[0].decode("utf-8", tokens.errors)  # belongs to the prompt unless it completes
        for token_id in prompt_ids:
            if not self._is_at_start:
                break
            self._start(token_id)

    def push(self, token_id: int) -> str:
        data = self._start(token_id) if self._is_at_start else self._bytes_of(token_id)
        return self._own(self._utf8.decode(data))

    def flush(self) -> str:
        return self._own(self._utf8.decode(b"", final=True))

    def _bytes_of(self, token_id: int) -> bytes:
        return self._tokens.written(token_id) if token_id in self._written else self._tokens.shown(token_id)

    def _own(self, text: str) -> str:
        if self._due and text:
            text, self._due = text.removeprefix(self._due), ""
        return text

    def _start(self, token_id: int) -> bytes:
        """The bytes of a token that nothing was decoded before."""
        data = self._bytes_of(token_id)
        if not data:
            return data
        if self._tokens.rules.vanishing:
            data = self._tokens.without_vanishing(token_id)
        rest = data.lstrip(b" ")
        rest = data[min(self._num_spaces, len(data) - len(rest)) :]
        self._num_spaces -= len(data) - len(rest)
        self._is_at_start = not rest and self._num_spaces > 0
        return rest


class WindowDetokenizer:
    """Decodes a window of the last tokens again and again, for tokenizers that ``TokenBytes`` does not know.

    Exact for decoders whose text for a token depends on near neighbours alone.

    Args:
        decode: token ids to text.
        silent: tokens that ``decode`` leaves out.
        prompt_ids: what the text follows.
    """

    def __init__(self, decode: Callable[[list[int]], str], silent: Collection[int], prompt_ids: Sequence[int]):
        self._decode, self._silent = decode, silent
        heard = (token_id for token_id in reversed(prompt_ids) if token_id not in silent)
        self._window = [token_id for token_id, _ in zip(heard, range(CONTEXT), strict=False)][::-1]
        self._prompt_text: str | None = decode(self._window)  # until something follows it
        self._num_sent = len(self._prompt_text)

    def push(self, token_id: int) -> str:
        if token_id in self._silent:
            return ""
        self._window.append(token_id)
        text = self._text()
        sent, self._num_sent = self._num_sent, max(self._num_sent, len(text) - _num_waiting(text))
        new = text[sent : self._num_sent]
        if len(self._window) > WINDOW:
            self._shorten(len(text) - self._num_sent)
        return new

    def flush(self) -> str:
        return self._text()[self._num_sent :]

    def _text(self) -> str:
        text = self._decode(self._window)
        if self._prompt_text is not None and text != self._prompt_text:
            if not text.startswith(self._prompt_text):  # a character that the prompt left incomplete is complete
                self._num_sent = len(self._prompt_text) - _num_waiting(self._prompt_text)
            self._prompt_text = None
        return text

    def _shorten(self, num_waiting: int) -> None:
        context = self._window[-CONTEXT:]
        num_characters = len(self._decode(context))
        if num_characters > num_waiting:
            self._window, self._num_sent = context, num_characters - num_waiting


def _num_waiting(text: str) -> int:
    """How many characters at the end of a text may still become one."""
    return min(MOST_WAITING, len(text) - len(text.rstrip(REPLACEMENT)))
