"""Incremental detokenisation: complete characters, and the same text as decoding all tokens at once."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from server.model.text.token_bytes import TokenBytes

REPLACEMENT = "\ufffd"  # a decoder's output for invalid or incomplete bytes
MAX_INCOMPLETE = 3  # bytes of an incomplete character
CONTEXT, WINDOW = 8, 16  # tokens


class Detokenizer(Protocol):
    """Decodes one sequence token by token."""

    def push(self, token_id: int) -> str:
        """Return the text that a new token completes; empty while a character is incomplete."""

    def flush(self) -> str:
        """Return the rest at the end, with an incomplete character as the decoder replaces it."""


class ByteDetokenizer:
    """Concatenates the bytes of tokens; at most three bytes of an incomplete character are held back.

    Its text equals the tokenizer's with one exception: next to single-byte tokens that are not UTF-8, the tokenizers
    library also replaces complete characters, which are kept here.

    Args:
        tokens: bytes of the vocabulary's tokens.
        prompt_ids: the prompt before the text; a character that it leaves incomplete is completed.
        written: special tokens that are written as text.
    """

    def __init__(self, tokens: TokenBytes, prompt_ids: Sequence[int], written: Collection[int] = ()):
        self._tokens, self._written = tokens, written
        self._is_at_start = bool(tokens.rules.start_mark or tokens.rules.num_spaces)
        self._num_spaces = tokens.rules.num_spaces
        self._utf8 = codecs.getincrementaldecoder("utf-8")(tokens.errors)
        tail = b""
        for token_id in reversed(prompt_ids):
            if len(tail) > MAX_INCOMPLETE:
                break
            tail = self._bytes_of(token_id) + tail
        self._utf8.decode(tail)
        self._incomplete = self._utf8.getstate()[0].decode(
            "utf-8", tokens.errors
        )  # text of the prompt, unless a token completes it
        for token_id in prompt_ids:
            if not self._is_at_start:
                break
            self._start(token_id)

    def push(self, token_id: int) -> str:
        text = self._utf8.decode(self._start(token_id) if self._is_at_start else self._bytes_of(token_id))
        return self._own(text) if self._incomplete else text

    def flush(self) -> str:
        return self._own(self._utf8.decode(b"", final=True))

    def _bytes_of(self, token_id: int) -> bytes:
        return self._tokens.of_token(token_id) if token_id in self._written else self._tokens.visible(token_id)

    def _own(self, text: str) -> str:
        if self._incomplete and text:
            text, self._incomplete = text.removeprefix(self._incomplete), ""
        return text

    def _start(self, token_id: int) -> bytes:
        """Return the bytes of a token at the start of the text, without what decoders strip there."""
        data = self._bytes_of(token_id)
        if not data:
            return data
        if self._tokens.rules.start_mark:
            data = self._tokens.at_start(token_id)
        rest = data.lstrip(b" ")
        rest = data[min(self._num_spaces, len(data) - len(rest)) :]
        self._num_spaces -= len(data) - len(rest)
        self._is_at_start = not rest and self._num_spaces > 0
        return rest


class WindowDetokenizer:
    """Decodes a window of the last tokens at each step, for tokenizers that ``TokenBytes`` does not support.

    It is exact for decoders whose text of a token depends only on near neighbours.

    Args:
        decode: converts token ids to text.
        silent: tokens that ``decode`` leaves out.
        prompt_ids: the prompt before the text.
    """

    def __init__(self, decode: Callable[[list[int]], str], silent: Collection[int], prompt_ids: Sequence[int]):
        self._decode, self._silent = decode, silent
        visible = (token_id for token_id in reversed(prompt_ids) if token_id not in silent)
        self._window = [token_id for token_id, _ in zip(visible, range(CONTEXT), strict=False)][::-1]
        self._prompt_text: str | None = decode(self._window)  # None once text follows it
        self._num_sent = len(self._prompt_text)

    def push(self, token_id: int) -> str:
        if token_id in self._silent:
            return ""
        self._window.append(token_id)
        text = self._text()
        sent, self._num_sent = self._num_sent, max(self._num_sent, len(text) - _num_incomplete(text))
        new = text[sent : self._num_sent]
        if len(self._window) > WINDOW:
            self._shorten(len(text) - self._num_sent)
        return new

    def flush(self) -> str:
        return self._text()[self._num_sent :]

    def _text(self) -> str:
        text = self._decode(self._window)
        if self._prompt_text is not None and text != self._prompt_text:
            if not text.startswith(self._prompt_text):  # completes a character of the prompt
                self._num_sent = len(self._prompt_text) - _num_incomplete(self._prompt_text)
            self._prompt_text = None
        return text

    def _shorten(self, num_incomplete: int) -> None:
        context = self._window[-CONTEXT:]
        num_characters = len(self._decode(context))
        if num_characters > num_incomplete:
            self._window, self._num_sent = context, num_characters - num_incomplete


def _num_incomplete(text: str) -> int:
    """Return how many characters at the end of a text may be parts of an incomplete one."""
    return min(MAX_INCOMPLETE, len(text) - len(text.rstrip(REPLACEMENT)))
