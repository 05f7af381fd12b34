"""Tool calls as a list in Python's syntax: ``[f(a="x", b=1), g()]``."""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.api.tool_parsers.argument_values import encode, literal, parse_python
from server.api.tool_parsers.call_syntax import Calls, MalformedCallError
from server.api.tool_parsers.json_calls import JsonCalls
from server.api.tool_parsers.lark_grammar import LarkGrammar, keyword_rules, sequence
from server.api.tool_parsers.text_buffer import Steps, Stops, TextBuffer

QUOTES = Stops("(", ")", "[", "]", "{", "}", '"', "'", "\\")


@dataclass(frozen=True)
class Pythonic:
    """Reads a list of calls, between two tags if the format has tags."""

    openers: tuple[str, ...] = ()
    closer: str = ""

    @property
    def markers(self) -> Sequence[str]:
        return *self.openers, self.closer

    def read(self, buffer: TextBuffer, opener: str, calls: Calls) -> Steps[None]:
        yield from buffer.skip_space()
        if not (yield from buffer.take("[")):
            raise MalformedCallError
        yield from buffer.skip_space()
        if (yield from buffer.peek()) == "{":  # some templates show the calls in JSON
            buffer.rewind()
            yield from JsonCalls((), self.closer).read(buffer, opener, calls)
            return
        while True:
            yield from buffer.skip_space()
            name, stop = yield from buffer.collect(Stops("(", ")", "]", '"', "'", "{", "\n"))
            if stop != "(" or (calls.only_known and name.strip() not in calls.schemas):
                raise MalformedCallError
            arguments = yield from self._arguments(buffer)
            yield calls.open(buffer, name.strip())
            yield calls.more(arguments)
            buffer.mark()
            yield from buffer.skip_space()
            if not (yield from buffer.take(",")):
                break
        yield from buffer.take("]")
        yield from buffer.skip_space()
        if self.closer and not (yield from buffer.take(self.closer)):
            buffer.rewind()
        buffer.unmark()

    def rules(self, lark: LarkGrammar, schemas: Mapping[str, Mapping[str, Any]], *, has_one_call: bool) -> str:
        arguments = {name: keyword_rules(lark, schema, "=", ", ", LarkGrammar.json) for name, schema in schemas.items()}
        call = lark.either(f"{lark.text(name + '(')} {arguments[name]} {lark.text(')')}" for name in schemas)
        begin, end = lark.text("".join(self.openers[:1]) + "["), lark.text("]" + self.closer)
        return f"{begin} {sequence(call, lark.text(', '), has_one_call=has_one_call)} {end}"

    @staticmethod
    def _arguments(buffer: TextBuffer) -> Steps[str]:
        """Read up to the closing parenthesis of a call; return its keyword arguments as JSON."""
        text, depth, quote = "", 1, ""
        while depth:
            part, stop = yield from buffer.collect(QUOTES)
            text += part + stop
            if not stop:
                raise MalformedCallError
            if stop == "\\":
                escaped = yield from buffer.peek()
                text += buffer.read(len(escaped))
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
