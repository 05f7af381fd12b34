"""Gemma 4's tool calls: ``<|tool_call>call:f{city:<|"|>Paris<|"|>,days:3}<tool_call|>``."""

from collections.abc import Iterator, Mapping, Sequence
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
        name, brace, rest = text.partition("{")
        if not stop or not brace:
            raise MalformedCallError
        arguments = encode(Values(brace + rest).value())
        yield calls.open(buffer, name.strip())
        yield calls.more(arguments)

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


class Values:
    """Reads values from complete text."""

    def __init__(self, text: str) -> None:
        self._words = list(_words(text))
        self._place = 0

    def value(self, depth: int = 0) -> object:
        """Read the next value.

        Raises:
            MalformedCallError: there is no value, or it is nested too deeply.

        """
        if depth > MAX_DEPTH:
            raise MalformedCallError
        word = self._take()
        if word == QUOTE:
            text = self._take()
            if text == QUOTE:
                return ""
            self._expect(QUOTE)
            return text
        if word == "{":
            return self._object(depth)
        if word == "[":
            return self._list(depth)
        found = read_value(word.strip(), reads_python=True)
        return word.strip() if found is None else found[0]

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
        while self._place < len(self._words) and self._words[self._place] == ",":
            self._place += 1
        if self._place < len(self._words) and self._words[self._place] == bracket:
            self._place += 1
            return True
        return False

    def _take(self) -> str:
        if self._place == len(self._words):
            raise MalformedCallError
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
