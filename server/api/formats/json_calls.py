"""Calls in JSON, as an object, several or a list: ``{"name": "f", "arguments": {...}}``."""

import json
from collections.abc import Generator
from dataclasses import dataclass

from server.api.formats.calls import Calls, MalformedCallError
from server.api.formats.source import Source, Steps, Stops

ARGUMENTS = ("arguments", "parameters")
DELIMITERS = frozenset(",]}")


class JsonScanner:
    """Finds the end of a JSON value whose text comes bit by bit; what is no JSON within brackets goes unnoticed."""

    def __init__(self) -> None:
        self._depth, self._begun = 0, False
        self._in_string = self._is_escaped = False
        self.is_done = False

    def scan(self, text: str) -> int:
        """How many characters belong to the value."""
        for place, character in enumerate(text):
            if self._in_string:
                if self._is_escaped:
                    self._is_escaped = False
                elif character == "\\":
                    self._is_escaped = True
                elif character == '"':
                    self._in_string = False
                    self.is_done = self._depth == 0
            elif character == '"' and (self._depth or not self._begun):
                self._in_string = True
            elif character in "{[" and (self._depth or not self._begun):
                self._depth += 1
            elif self._depth == 0 and (character in DELIMITERS or character.isspace()):
                self.is_done = True
                return place
            elif character in "}]":
                self._depth -= 1
                self.is_done = self._depth == 0
            self._begun = True
            if self.is_done:
                return place + 1
        return len(text)


def json_bits(source: Source) -> Generator[str | None, None, None]:
    """The text of the JSON value that comes next, as it comes, and None where more is needed."""
    scanner = JsonScanner()
    while True:
        if bit := source.read(scanner.scan(source.ahead)):
            yield bit
        if scanner.is_done or source.is_over:
            return
        yield None


def json_value(source: Source) -> Steps[object]:
    """The JSON value that comes next.

    Raises:
        MalformedCallError: there is none.

    """
    bits: list[str] = []
    for bit in json_bits(source):
        if bit is None:
            yield None
        else:
            bits.append(bit)
    try:
        value: object = json.loads("".join(bits), strict=False)
    except (ValueError, RecursionError) as error:
        raise MalformedCallError from error
    return value


def json_call(source: Source, calls: Calls, name: str, call_id: str | None = None) -> Steps[None]:
    """A call whose name is known, and whose arguments come next: an object, in a string perhaps, or nothing.

    Raises:
        MalformedCallError: they are something else.

    """
    yield from source.skip_space()
    first = yield from source.peek()
    if first == "{":
        yield calls.open(source, name, call_id)
        for bit in json_bits(source):
            yield None if bit is None else calls.more(bit)
        return
    value = yield from json_value(source)
    yield calls.open(source, name, call_id)
    yield calls.more(arguments_text(value))


def arguments_text(value: object) -> str:
    """Arguments that were read whole, as JSON.

    Raises:
        MalformedCallError: these are no arguments.

    """
    if isinstance(value, str) and value.lstrip().startswith("{"):
        return value
    if value is None or value == "":
        return "{}"
    if not isinstance(value, dict):
        raise MalformedCallError
    return json.dumps(value, ensure_ascii=False)


def object_call(source: Source, calls: Calls) -> Steps[None]:
    """A call as an object; what is neither its name nor its arguments is left out.

    Raises:
        MalformedCallError: it is none.

    """
    yield from source.skip_space()
    if not (yield from source.take("{")):
        raise MalformedCallError
    name: object = None
    early: str | None = None  # arguments that came before the name
    is_first, is_open = True, False
    while True:
        yield from source.skip_space()
        if (yield from source.take("}")):
            break
        try:
            if not is_first and not (yield from source.take(",")):
                raise MalformedCallError
            is_first = False
            yield from source.skip_space()
            key = yield from json_value(source)
            yield from source.skip_space()
            if not (yield from source.take(":")):
                raise MalformedCallError
            yield from source.skip_space()
            if key in ARGUMENTS and isinstance(name, str) and not is_open:
                yield from json_call(source, calls, name)
                is_open = True
                continue
            value = yield from json_value(source)
        except MalformedCallError:
            if is_open:
                return
            raise
        if key == "name" and isinstance(value, str):
            name = value
        elif key in ARGUMENTS and not is_open:
            early = arguments_text(value)
    if not is_open:
        if not isinstance(name, str):
            raise MalformedCallError
        yield calls.open(source, name)
        yield calls.more("{}" if early is None else early)


def object_calls(source: Source, calls: Calls) -> Steps[None]:
    """A call or a list of them, or several one after the other.

    Raises:
        MalformedCallError: the first is none, or one behind it.

    """
    yield from source.skip_space()
    is_list = yield from source.take("[")
    while True:
        yield from object_call(source, calls)
        yield from source.skip_space()
        source.mark()
        for separator in (",", ";"):
            if (yield from source.take(separator)):
                yield from source.skip_space()
        if is_list and (yield from source.take("]")):
            break
        if (yield from source.peek()) != "{":
            break
    source.unmark()


@dataclass(frozen=True)
class TaggedJson:
    """JSON behind a tag, and before another if there is one."""

    openers: tuple[str, ...]
    closer: str = ""

    def read(self, source: Source, opener: str, calls: Calls) -> Steps[None]:  # noqa: ARG002  of the protocol
        yield from object_calls(source, calls)
        if self.closer:
            yield from close(source, self.closer)


def close(source: Source, closer: str) -> Steps[None]:
    """Read the end of a call; what is superfluous before it goes, and if it never comes it is nothing that goes."""
    yield from source.skip_space()
    source.mark()
    _, stop = yield from source.collect(Stops(closer))
    if not stop:
        source.rewind()
    source.unmark()
