"""Gemma 4's calls: ``<|tool_call>call:f{city:<|"|>Paris<|"|>,days:3}<tool_call|>``."""

from collections.abc import Iterator
from dataclasses import dataclass

from server.api.formats.calls import Calls, MalformedCallError
from server.api.formats.source import Source, Steps, Stops
from server.api.formats.values import encode, read_value

QUOTE = '<|"|>'
MAX_DEPTH = 100


@dataclass(frozen=True)
class Gemma:
    """Keys stand as they are, strings between tokens that are their quotes, all else as in JSON."""

    openers: tuple[str, ...] = ("<|tool_call>",)
    closer: str = "<tool_call|>"

    def read(self, source: Source, opener: str, calls: Calls) -> Steps[None]:  # noqa: ARG002  of the protocol
        if not (yield from source.take("call:")):
            raise MalformedCallError
        text, stop = yield from source.collect(Stops(self.closer))
        name, brace, rest = text.partition("{")
        if not stop or not brace:
            raise MalformedCallError
        arguments = encode(Values(brace + rest).value())
        yield calls.open(source, name.strip())
        yield calls.more(arguments)


class Values:
    """A reader of values that were written whole."""

    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))
        self._place = 0

    def value(self, depth: int = 0) -> object:
        """Read the value that comes next.

        Raises:
            MalformedCallError: there is none, or it is nested too deeply.

        """
        if depth > MAX_DEPTH:
            raise MalformedCallError
        token = self._take()
        if token == QUOTE:
            text = self._take()
            if text == QUOTE:
                return ""
            self._expect(QUOTE)
            return text
        if token == "{":
            return self._object(depth)
        if token == "[":
            return self._list(depth)
        found = read_value(token.strip(), reads_python=True)
        return token.strip() if found is None else found[0]

    def _object(self, depth: int) -> dict[str, object]:
        values: dict[str, object] = {}
        while not self._ends("}"):
            key = self._take()
            if key == QUOTE:
                key = self._take()
                self._expect(QUOTE)
            self._expect(":")
            values[key.strip()] = self.value(depth + 1)
        return values

    def _list(self, depth: int) -> list[object]:
        values: list[object] = []
        while not self._ends("]"):
            values.append(self.value(depth + 1))
        return values

    def _ends(self, bracket: str) -> bool:
        while self._place < len(self._tokens) and self._tokens[self._place] == ",":
            self._place += 1
        if self._place < len(self._tokens) and self._tokens[self._place] == bracket:
            self._place += 1
            return True
        return False

    def _take(self) -> str:
        if self._place == len(self._tokens):
            raise MalformedCallError
        self._place += 1
        return self._tokens[self._place - 1]

    def _expect(self, token: str) -> None:
        if self._take() != token:
            raise MalformedCallError


def _tokens(text: str) -> Iterator[str]:
    """Quotes, what stands between them, punctuation, and what stands between that."""
    for number, part in enumerate(text.split(QUOTE)):
        if number:
            yield QUOTE
        if number % 2:
            if part:
                yield part
            continue
        word = ""
        for character in part:
            if character in "{}[],:":
                if word.strip():
                    yield word
                word = ""
                yield character
            else:
                word += character
        if word.strip():
            yield word
