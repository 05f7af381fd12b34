"""The section of tool calls that DeepSeek's and Kimi's models write: special tokens around it and around each call."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.api.tool_parsers.call_syntax import Calls, MalformedCallError
from server.api.tool_parsers.json_calls import close, json_call
from server.api.tool_parsers.lark_grammar import LarkGrammar, sequence
from server.api.tool_parsers.text_buffer import Steps, Stops, TextBuffer


@dataclass(frozen=True)
class Section(ABC):
    """A section of calls.

    Args:
        section: the markers at the beginning and the end of the section.
        call: the markers at the beginning and the end of each call.
        separator: the marker between a call's head and its arguments.
        between: text between two calls.

    """

    section: tuple[str, str]
    call: tuple[str, str]
    separator: str
    between: str = ""

    @property
    def openers(self) -> tuple[str, ...]:
        return self.section[0], self.call[0]

    @property
    def markers(self) -> Sequence[str]:
        return *self.section, *self.call, self.separator

    def read(self, buffer: TextBuffer, opener: str, calls: Calls) -> Steps[None]:
        begin, end = self.call
        is_open = opener == begin
        num_before = calls.count
        while True:
            yield from buffer.skip_space()
            if not is_open and not (yield from buffer.take(begin)):
                break
            is_open = False
            head, stop = yield from buffer.collect(Stops(self.separator, end))
            if stop != self.separator:
                raise MalformedCallError
            name, call_id = yield from self._name(buffer, head.strip())
            yield from json_call(buffer, calls, name, call_id)
            yield from close(buffer, end)
            buffer.mark()
        if calls.count == num_before:
            raise MalformedCallError
        yield from buffer.take(self.section[1])
        buffer.unmark()

    def rules(self, lark: LarkGrammar, schemas: Mapping[str, Mapping[str, Any]], *, has_one_call: bool) -> str:
        begin, end = self.call
        call = lark.either(
            f"{lark.text(begin + before)} {lark.json(schema)} {lark.text(behind + end)}"
            for name, schema in schemas.items()
            for before, behind in [self._around(name)]
        )
        calls = sequence(call, lark.text(self.between), has_one_call=has_one_call)
        return f"{lark.text(self.section[0])} {calls} {lark.text(self.section[1])}"

    def _around(self, name: str) -> tuple[str, str]:
        """Return what a call of a tool contains before its arguments and after them."""
        return f"{name}{self.separator}", ""

    @abstractmethod
    def _name(self, buffer: TextBuffer, head: str) -> Steps[tuple[str, str | None]]:
        """Return the name of a call, and its id if the model gives one; ``head`` precedes the separator."""
