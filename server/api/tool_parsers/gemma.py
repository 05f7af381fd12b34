"""Gemma 4's tool calls: ``<|tool_call>call:f{city:<|"|>Paris<|"|>,days:3}<tool_call|>``."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from server.api.tool_parsers.argument_values import encode, read_value, types_of
from server.api.tool_parsers.call_syntax import Calls, MalformedCallError
from server.api.tool_parsers.lark_grammar import LarkGrammar, keyword_rules, parameter, sequence
from server.api.tool_parsers.text_buffer import Steps, Stops, TextBuffer

QUOTE = '<|"|>'
MAX_DEPTH = 100


@dataclass(frozen=True)
class Gemma:
    """Reads calls with bare keys, and strings between special tokens as quotes; other values are JSON."""

    openers: tuple[str, ...] = ("<|tool_call>",)
    closer: str = "<tool_call|>"

    @property
    def markers(self) -> Sequence[str]:
        return *self.openers, self.closer, QUOTE

    def read(self, buffer: TextBuffer, opener: str, calls: Calls) -> Steps[None]:  # noqa: ARG002  of the protocol
        if not (yield from buffer.take("call:")):
            raise MalformedCallError
        text, stop = yield from buffer.collect(Stops(self.closer))
        if not stop:
            text = text[: len(text) - Stops(self.closer, QUOTE).num_waiting(text)]
        name, brace, rest = text.partition("{")
        if not (stop or buffer.is_cut) or not brace:
            raise MalformedCallError
        values = Values(brace + rest, may_be_cut=not stop)
        arguments = encode(values.value())
        yield calls.open(buffer, name.strip())
        yield calls.more(arguments.removesuffix("}") if values.are_cut else arguments)

    def rules(self, lark: LarkGrammar, schemas: Mapping[str, Mapping[str, Any]], *, has_one_call: bool) -> str:
        heads, end = (
            {name: lark.text(f"{self.openers[0]}call:{name}{{") for name in schemas},
            lark.text("}" + self.closer),
        )
        arguments = {name: keyword_rules(lark, schema, ":", ",", self._value) for name, schema in schemas.items()}
        call = lark.either(f"{heads[name]} {arguments[name]} {end}" for name in schemas)
        return sequence(call, "", has_one_call=has_one_call)

    def _value(self, lark: LarkGrammar, schema: Mapping[str, Any]) -> str:
        """Return the rule of a value; parts whose type the schema does not give are JSON."""
        types = types_of(schema)
        if types == {"string"}:
            return f"{lark.text(QUOTE)} {parameter(lark, schema, QUOTE)}"
        if types == {"array"} and isinstance(schema.get("items"), dict):
            item = self._value(lark, schema["items"])
            return f"{lark.text('[')} ({item} ({lark.text(',')} {item})*)? {lark.text(']')}"
        if types == {"object"}:
            return f"{lark.text('{')} {keyword_rules(lark, schema, ':', ',', self._value)} {lark.text('}')}"
        return lark.json(schema)


class CutError(MalformedCallError):
    """The text ends within a value."""


class Values:
    """Reads values from a text, whose end may be cut off.

    Args:
        may_be_cut: objects, lists and strings may end with the text; what can't be told from its beginning is left out.

    """

    def __init__(self, text: str, *, may_be_cut: bool = False) -> None:
        self._words = list(_words(text))
        self._place = 0
        self._may_be_cut = may_be_cut
        self.are_cut = False

    def value(self, depth: int = 0) -> object:
        """Read the next value.

        Raises:
            MalformedCallError: there is no value, or it is nested too deeply.

        """
        if depth > MAX_DEPTH:
            raise MalformedCallError
        word = self._take()
        if word == QUOTE:
            return self._string()
        if word == "{":
            return self._object(depth)
        if word == "[":
            return self._list(depth)
        found = read_value(word.strip(), reads_python=True)
        if found is None and self._may_be_cut and self._place == len(self._words):
            raise CutError
        return word.strip() if found is None else found[0]

    def _string(self) -> str:
        text = ""
        with self._up_to_the_cut():
            text = self._take()
            if text == QUOTE:
                return ""
            self._expect(QUOTE)
        return text

    def _object(self, depth: int) -> dict[str, object]:
        values: dict[str, object] = {}
        with self._up_to_the_cut():
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
        with self._up_to_the_cut():
            while not self._ends("]"):
                values.append(self.value(depth + 1))
        return values

    @contextmanager
    def _up_to_the_cut(self) -> Iterator[None]:
        """End a string, an object or a list where the text is cut off, if it may be."""
        try:
            yield
        except CutError:
            if not self._may_be_cut:
                raise
            self.are_cut = True

    def _ends(self, bracket: str) -> bool:
        while self._place < len(self._words) and self._words[self._place] == ",":
            self._place += 1
        if self._place < len(self._words) and self._words[self._place] == bracket:
            self._place += 1
            return True
        return False

    def _take(self) -> str:
        if self._place == len(self._words):
            raise CutError
        self._place += 1
        return self._words[self._place - 1]

    def _expect(self, word: str) -> None:
        if self._take() != word:
            raise MalformedCallError


def _words(text: str) -> Iterator[str]:
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
