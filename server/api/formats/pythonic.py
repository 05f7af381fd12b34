"""Calls as a list in Python: ``[f(a="x", b=1), g()]``."""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.api.formats.calls import Calls, MalformedCallError
from server.api.formats.json_calls import JsonCalls
from server.api.formats.lark import Lark, keyword_rules, sequence
from server.api.formats.source import Source, Steps, Stops
from server.api.formats.values import encode, literal, parse_python

QUOTES = Stops("(", ")", "[", "]", "{", "}", '"', "'", "\\")


@dataclass(frozen=True)
class Pythonic:
    """A list of calls, behind a tag and before another, if there are any."""

    openers: tuple[str, ...] = ()
    closer: str = ""

    @property
    def markers(self) -> Sequence[str]:
        return *self.openers, self.closer

    def read(self, source: Source, opener: str, calls: Calls) -> Steps[None]:
        yield from source.skip_space()
        if not (yield from source.take("[")):
            raise MalformedCallError
        yield from source.skip_space()
        if (yield from source.peek()) == "{":  # as some templates show it
            source.rewind()
            yield from JsonCalls((), self.closer).read(source, opener, calls)
            return
        while True:
            yield from source.skip_space()
            name, stop = yield from source.collect(Stops("(", ")", "]", '"', "'", "{", "\n"))
            if stop != "(" or (calls.only_known and name.strip() not in calls.schemas):
                raise MalformedCallError
            arguments = yield from self._arguments(source)
            yield calls.open(source, name.strip())
            yield calls.more(arguments)
            source.mark()
            yield from source.skip_space()
            if not (yield from source.take(",")):
                break
        yield from source.take("]")
        yield from source.skip_space()
        if self.closer and not (yield from source.take(self.closer)):
            source.rewind()
        source.unmark()

    def rules(self, lark: Lark, schemas: Mapping[str, Mapping[str, Any]], *, has_one_call: bool) -> str:
        arguments = {name: keyword_rules(lark, schema, "=", ", ", Lark.json) for name, schema in schemas.items()}
        call = lark.either(f"{lark.text(name + '(')} {arguments[name]} {lark.text(')')}" for name in schemas)
        begin, end = lark.text("".join(self.openers[:1]) + "["), lark.text("]" + self.closer)
        return f"{begin} {sequence(call, lark.text(', '), has_one_call=has_one_call)} {end}"

    @staticmethod
    def _arguments(source: Source) -> Steps[str]:
        """Read up to the parenthesis that closes a call; its keyword arguments as JSON."""
        text, depth, quote = "", 1, ""
        while depth:
            part, stop = yield from source.collect(QUOTES)
            text += part + stop
            if not stop:
                raise MalformedCallError
            if stop == "\\":
                escaped = yield from source.peek()
                text += source.read(len(escaped))
            elif quote:
                quote = "" if stop == quote else quote
            elif stop in "\"'":
                quote = stop
            else:
                depth += 1 if stop in "([{" else -1
        try:
            call = parse_python(f"f({text}")
            if not isinstance(call, ast.Call) or call.args:
                raise MalformedCallError
            return encode({each.arg: literal(each.value) for each in call.keywords if each.arg is not None})
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
            raise MalformedCallError from error
