"""Tool calls in JSON, as objects or a list of them: ``{"name": "f", "arguments": {...}}``."""

import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.api.tool_parsers.argument_values import encode
from server.api.tool_parsers.call_syntax import Calls, MalformedCallError
from server.api.tool_parsers.lark_grammar import LarkGrammar, sequence
from server.api.tool_parsers.text_buffer import Steps, Stops, TextBuffer

ARGUMENTS = ("arguments", "parameters")
KEYS = ("name", "id", "type", *ARGUMENTS)
SPACE = r"/[ \n]{0,8}/"
DELIMITERS = frozenset(",]}")


class JsonScanner:
    """Finds the end of a JSON value that arrives in parts. It counts brackets, and does not validate what is inside."""

    def __init__(self) -> None:
        self._depth, self._has_begun = 0, False
        self._in_string = self._is_escaped = False
        self.is_done = False

    def scan(self, text: str) -> int:
        """Return how many characters belong to the value."""
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


def json_bits(buffer: TextBuffer) -> Generator[str | None, None, None]:
    """Yield the text of the next JSON value as it arrives, and None when more text is needed."""
    scanner = JsonScanner()
    while True:
        if bit := buffer.read(scanner.scan(buffer.ahead)):
            yield bit
        if scanner.is_done or buffer.is_over:
            return
        yield None


def json_value(buffer: TextBuffer) -> Steps[object]:
    """Read the next JSON value.

    Raises:
        MalformedCallError: the text is not JSON.

    """
    bits: list[str] = []
    for bit in json_bits(buffer):
        if bit is None:
            yield None
        else:
            bits.append(bit)
    try:
        value: object = json.loads("".join(bits), strict=False)
    except (ValueError, RecursionError) as error:
        raise MalformedCallError from error
    return value


def json_call(buffer: TextBuffer, calls: Calls, name: str, call_id: str | None = None) -> Steps[None]:
    """Read the arguments of a call whose name is known: an object, an object in a string, or nothing.

    Arguments that were cut off before they began are empty.

    Raises:
        MalformedCallError: the text is something else.

    """
    yield from buffer.skip_space()
    first = yield from buffer.peek()
    if buffer.is_cut_here:
        yield calls.open(buffer, name, call_id)
        return
    if first == "{":
        yield calls.open(buffer, name, call_id)
        for bit in json_bits(buffer):
            yield None if bit is None else calls.more(bit)
        return
    arguments = arguments_text((yield from json_value(buffer)))
    yield calls.open(buffer, name, call_id)
    yield calls.more(arguments)


def arguments_text(value: object) -> str:
    """Encode complete arguments as JSON.

    Raises:
        MalformedCallError: the value is not an object.

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


def object_call(buffer: TextBuffer, calls: Calls) -> Steps[None]:
    """Read a call that is an object; members other than the name and the arguments are ignored.

    Raises:
        MalformedCallError: the text is not a call.

    """
    yield from buffer.skip_space()
    if not (yield from buffer.take("{")):
        raise MalformedCallError
    name: object = None
    arguments, separator = "{}", ""
    while not (yield from _closes(buffer)):
        try:
            key = yield from _key(buffer, separator)
        except MalformedCallError:
            if not (buffer.is_cut_here and isinstance(name, str)):
                raise
            yield calls.open(buffer, name)
            return
        if key not in KEYS:  # it is text in JSON, which need not be held back any longer
            raise MalformedCallError
        separator = ","
        if key in ARGUMENTS and isinstance(name, str):
            yield from json_call(buffer, calls, name)
            yield from _skip_members(buffer)
            return
        value = yield from json_value(buffer)
        if key == "name":
            name = value
        elif key in ARGUMENTS:
            arguments = arguments_text(value)
    if not isinstance(name, str):
        raise MalformedCallError
    yield calls.open(buffer, name)
    yield calls.more(arguments)


def _closes(buffer: TextBuffer) -> Steps[bool]:
    """Read the end of an object, if it is next."""
    yield from buffer.skip_space()
    return (yield from buffer.take("}"))


def _key(buffer: TextBuffer, separator: str) -> Steps[object]:
    """Read the key of an object's next member.

    Raises:
        MalformedCallError: there is no key.

    """
    if not (yield from buffer.take(separator)):
        raise MalformedCallError
    yield from buffer.skip_space()
    key = yield from json_value(buffer)
    yield from buffer.skip_space()
    if not (yield from buffer.take(":")):
        raise MalformedCallError
    yield from buffer.skip_space()
    return key


def _skip_members(buffer: TextBuffer) -> Steps[None]:
    """Read the rest of an object, as far as it is well-formed."""
    try:
        while not (yield from _closes(buffer)):
            yield from _key(buffer, ",")
            yield from json_value(buffer)
    except MalformedCallError:
        return


def object_calls(buffer: TextBuffer, calls: Calls) -> Steps[None]:
    """Read one call, a list of calls, or several calls in a row.

    Raises:
        MalformedCallError: one of them is not a call.

    """
    yield from buffer.skip_space()
    is_list = yield from buffer.take("[")
    while True:
        yield from object_call(buffer, calls)
        yield from buffer.skip_space()
        buffer.mark()
        for separator in (",", ";"):
            if (yield from buffer.take(separator)):
                yield from buffer.skip_space()
        if is_list and (yield from buffer.take("]")):
            break
        if (yield from buffer.peek()) != "{":
            break
    buffer.unmark()


@dataclass(frozen=True)
class JsonCalls:
    """Reads JSON between two tags, or after one tag; without tags the JSON is the complete turn.

    Args:
        is_list: one pair of tags holds all calls, as a list.
        padding: text between the tags and the JSON.
        arguments: the key of the arguments.

    """

    openers: tuple[str, ...] = ()
    closer: str = ""
    is_list: bool = True
    padding: str = ""
    arguments: str = "arguments"

    @property
    def markers(self) -> Sequence[str]:
        return *self.openers, self.closer

    def read(self, buffer: TextBuffer, opener: str, calls: Calls) -> Steps[None]:  # noqa: ARG002  of the protocol
        yield from object_calls(buffer, calls)
        if self.closer:
            yield from close(buffer, self.closer)

    def rules(self, lark: LarkGrammar, schemas: Mapping[str, Mapping[str, Any]], *, has_one_call: bool) -> str:
        opener, call = "".join(self.openers[:1]), json_rules(lark, schemas, self.arguments)
        if self.is_list:  # some models write each call on its own line
            calls = sequence(call, f'"," {SPACE}', has_one_call=has_one_call)
            return f'{lark.text(opener)} {SPACE} "[" {SPACE} {calls} {SPACE} "]" {lark.text(self.closer)}'
        begin = lark.text(opener + self.padding)
        end = lark.text(self.padding + self.closer if self.closer else "")
        return sequence(f"{begin} {call} {end}", lark.text(self.padding or "; "), has_one_call=has_one_call)


def json_rules(lark: LarkGrammar, schemas: Mapping[str, Mapping[str, Any]], key: str) -> str:
    """Return the rule of a call of one of the tools, as an object."""
    heads = {name: lark.text(f'{{"name": {encode(name)}, {encode(key)}: ') for name in schemas}
    return lark.either(f"{heads[name]} {lark.json(schema)} {lark.text('}')}" for name, schema in schemas.items())


def close(buffer: TextBuffer, closer: str) -> Steps[None]:
    """Read the end of a call, or what was left of it, and drop the text before it; read nothing if it never comes."""
    yield from buffer.skip_space()
    buffer.mark()
    rest, stop = yield from buffer.collect(Stops(closer))
    if not stop and not (buffer.is_cut and closer.startswith(rest)):
        buffer.rewind()
    buffer.unmark()
