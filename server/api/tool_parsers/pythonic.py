"""Tool calls as a list in Python's syntax: ``[f(a="x", b=1), g()]``."""

import ast
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from server.api.tool_parsers.argument_values import encode, literal, parse_python
from server.api.tool_parsers.call_syntax import Calls, MalformedCallError
from server.api.tool_parsers.json_calls import JsonCalls
from server.api.tool_parsers.lark_grammar import LarkGrammar, keyword_rules, sequence
from server.api.tool_parsers.text_buffer import Steps, Stops, TextBuffer

BRACKETS = {"(": ")", "[": "]", "{": "}"}
QUOTES = ('"', "'")
STOPS = Stops(*BRACKETS, *BRACKETS.values(), *QUOTES, ",", "\\")
MAX_DEPTH = 200  # of brackets; more than Python's parser takes
MAX_ENDS = 16  # places at which arguments that were cut off are tried to end


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
        if self.closer and not (yield from buffer.take(self.closer)) and not buffer.is_cut_here:
            buffer.rewind()
        buffer.unmark()

    def rules(self, lark: LarkGrammar, schemas: Mapping[str, Mapping[str, Any]], *, has_one_call: bool) -> str:
        arguments = {name: keyword_rules(lark, schema, "=", ", ", LarkGrammar.json) for name, schema in schemas.items()}
        call = lark.either(f"{lark.text(name + '(')} {arguments[name]} {lark.text(')')}" for name in schemas)
        begin, end = lark.text("".join(self.openers[:1]) + "["), lark.text("]" + self.closer)
        return f"{begin} {sequence(call, lark.text(', '), has_one_call=has_one_call)} {end}"

    @staticmethod
    def _arguments(buffer: TextBuffer) -> Steps[str]:
        """Read up to the closing parenthesis of a call; return its keyword arguments as JSON, as far as they came."""
        text = OpenText()
        while text.is_open:
            part, stop = yield from buffer.collect(STOPS)
            text.add(part)
            if not stop:
                if buffer.is_cut:
                    return cut_arguments(text)
                raise MalformedCallError
            if stop == "\\":
                stop += buffer.read(len((yield from buffer.peek())))
            text.add_stop(stop)
        return json_arguments(text.text)


class OpenText:
    """The text of a call's arguments, and ways to end it where it stands or at an earlier place."""

    def __init__(self) -> None:
        self.text = ""
        self._closers, self._quote = ")", ""  # of the brackets and the string that are open
        self._ends: deque[tuple[int, str]] = deque(maxlen=MAX_ENDS)  # places, and the closers there

    @property
    def is_open(self) -> bool:
        return self._closers != ""

    def add(self, text: str) -> None:
        self.text += text

    def add_stop(self, stop: str) -> None:
        """Add one of ``STOPS``; a backslash comes with the character that follows it.

        Raises:
            MalformedCallError: the brackets are nested too deeply.

        """
        if stop.startswith("\\") or (stop == "," and not self._quote):
            self._note_end()
        self.text += stop
        if self._quote:
            self._quote = "" if stop == self._quote else self._quote
        elif stop in QUOTES:
            self._quote = stop
        elif stop in BRACKETS:
            self._closers = BRACKETS[stop] + self._closers
            if len(self._closers) > MAX_DEPTH:
                raise MalformedCallError
            self._note_end()
        elif stop in BRACKETS.values():
            self._closers = self._closers[1:]

    def closed(self) -> Iterator[str]:
        """Yield the text closed at its end, then at some of the places before it, the last one first."""
        yield self.text + self._quote + self._closers
        for place, closers in reversed(self._ends):
            yield self.text[:place] + closers

    def _note_end(self) -> None:
        self._ends.append((len(self.text), self._quote + self._closers))


def cut_arguments(text: OpenText) -> str:
    """Return keyword arguments that were cut off, as JSON that is not closed; what can't be read is left out."""
    for closed in text.closed():
        with suppress(MalformedCallError):
            return json_arguments(closed).removesuffix("}")
    return "{"


def json_arguments(text: str) -> str:
    """Convert keyword arguments in Python's syntax and the parenthesis behind them to JSON.

    Raises:
        MalformedCallError: they are something else.

    """
    try:
        call = parse_python(f"f({text}")
        if not isinstance(call, ast.Call) or call.args:
            raise MalformedCallError
        return encode({each.arg: literal(each.value) for each in call.keywords if each.arg is not None})
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise MalformedCallError from error
