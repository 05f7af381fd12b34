"""Calls in JSON, as an object, several or a list: ``{"name": "f", "arguments": {...}}``."""

import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.api.formats.calls import Calls, MalformedCallError
from server.api.formats.lark import Lark, sequence
from server.api.formats.source import Source, Steps, Stops
from server.api.formats.values import encode

ARGUMENTS = ("arguments", "parameters")
KEYS = ("name", "id", "type", *ARGUMENTS)
SPACE = r"/[ \n]{0,8}/"
DELIMITERS = frozenset(",]}")


class JsonScanner:
    """Finds the end of a JSON value whose text comes bit by bit; what is no JSON within brackets goes unnoticed."""

    def __init__(self) -> None:
        self._depth, self._has_begun = 0, False
        self._in_string = self._is_escaped = False
        self.is_done = False

    def scan(self, text: str) -> int:
        """How many characters belong to the value."""
        for place, character in enumerate(text):
            if self._in_string:
                self._scan_string(character)
            elif not self._depth and self._has_begun:  # a number or a name
                self.is_done = character in DELIMITERS or character.isspace()
                if self.is_done:
                    return place
            else:
                self._scan_structure(character)
            self._has_begun = True
            if self.is_done:
                return place + 1
        return len(text)

    def _scan_string(self, character: str) -> None:
        if self._is_escaped:
            self._is_escaped = False
        elif character == "\\":
            self._is_escaped = True
        elif character == '"':
            self._in_string = False
            self.is_done = self._depth == 0

    def _scan_structure(self, character: str) -> None:
        if character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            self.is_done = self._depth <= 0


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
    arguments = arguments_text((yield from json_value(source)))
    yield calls.open(source, name, call_id)
    yield calls.more(arguments)


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
    try:
        return encode(value)
    except RecursionError as error:
        raise MalformedCallError from error


def object_call(source: Source, calls: Calls) -> Steps[None]:
    """A call as an object; what is neither its name nor its arguments is left out.

    Raises:
        MalformedCallError: it is none.

    """
    yield from source.skip_space()
    if not (yield from source.take("{")):
        raise MalformedCallError
    name: object = None
    arguments, separator = "{}", ""
    while not (yield from _closes(source)):
        key = yield from _key(source, separator)
        if key not in KEYS:  # an answer in JSON need not be held back up to its end
            raise MalformedCallError
        separator = ","
        if key in ARGUMENTS and isinstance(name, str):
            yield from json_call(source, calls, name)
            yield from _skip_members(source)
            return
        value = yield from json_value(source)
        if key == "name":
            name = value
        elif key in ARGUMENTS:
            arguments = arguments_text(value)
    if not isinstance(name, str):
        raise MalformedCallError
    yield calls.open(source, name)
    yield calls.more(arguments)


def _closes(source: Source) -> Steps[bool]:
    """Read the end of an object, if it comes next."""
    yield from source.skip_space()
    return (yield from source.take("}"))


def _key(source: Source, separator: str) -> Steps[object]:
    """Read the key of an object's next member.

    Raises:
        MalformedCallError: there is none.

    """
    if not (yield from source.take(separator)):
        raise MalformedCallError
    yield from source.skip_space()
    key = yield from json_value(source)
    yield from source.skip_space()
    if not (yield from source.take(":")):
        raise MalformedCallError
    yield from source.skip_space()
    return key


def _skip_members(source: Source) -> Steps[None]:
    """Read the rest of an object, as far as it is one."""
    try:
        while not (yield from _closes(source)):
            yield from _key(source, ",")
            yield from json_value(source)
    except MalformedCallError:
        return


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
class JsonCalls:
    """JSON behind a tag, and before another if there is one; without any it is all that the turn says."""

    openers: tuple[str, ...] = ()
    closer: str = ""
    is_list: bool = True  # whether one pair of tags holds all calls, as a list
    padding: str = ""  # between tags and JSON
    arguments: str = "arguments"  # their key

    @property
    def markers(self) -> Sequence[str]:
        return *self.openers, self.closer

    def read(self, source: Source, opener: str, calls: Calls) -> Steps[None]:  # noqa: ARG002  of the protocol
        yield from object_calls(source, calls)
        if self.closer:
            yield from close(source, self.closer)

    def rules(self, lark: Lark, schemas: Mapping[str, Mapping[str, Any]], *, has_one_call: bool) -> str:
        opener, call = "".join(self.openers[:1]), json_rules(lark, schemas, self.arguments)
        if self.is_list:  # some models put one call a line
            calls = sequence(call, f'"," {SPACE}', has_one_call=has_one_call)
            return f'{lark.text(opener)} {SPACE} "[" {SPACE} {calls} {SPACE} "]" {lark.text(self.closer)}'
        begin = lark.text(opener + self.padding)
        end = lark.text(self.padding + self.closer if self.closer else "")
        return sequence(f"{begin} {call} {end}", lark.text(self.padding or "; "), has_one_call=has_one_call)


def json_rules(lark: Lark, schemas: Mapping[str, Mapping[str, Any]], key: str) -> str:
    """A call of one of some tools as an object."""
    heads = {name: lark.text(f'{{"name": {encode(name)}, {encode(key)}: ') for name in schemas}
    return lark.either(f"{heads[name]} {lark.json(schema)} {lark.text('}')}" for name, schema in schemas.items())


def close(source: Source, closer: str) -> Steps[None]:
    """Read the end of a call; what is superfluous before it goes, and if it never comes it is nothing that goes."""
    yield from source.skip_space()
    source.mark()
    _, stop = yield from source.collect(Stops(closer))
    if not stop:
        source.rewind()
    source.unmark()
