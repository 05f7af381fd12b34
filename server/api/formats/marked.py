"""Calls between markers that are tokens of their own: Mistral, DeepSeek, Kimi."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.api.formats.calls import Calls, MalformedCallError
from server.api.formats.json_calls import JsonCalls, close, json_call, object_calls
from server.api.formats.lark import Lark, sequence
from server.api.formats.source import Source, Steps, Stops


@dataclass(frozen=True)
class Mistral:
    """``[TOOL_CALLS][{"name": ..., "arguments": ...}]``, or ``[TOOL_CALLS]name[ARGS]{...}``."""

    has_names: bool = False  # whether names stand before the arguments, rather than in a list of JSON
    openers: tuple[str, ...] = ("[TOOL_CALLS]",)

    @property
    def markers(self) -> Sequence[str]:
        return *self.openers, "[ARGS]", "[CALL_ID]"

    def read(self, source: Source, opener: str, calls: Calls) -> Steps[None]:  # noqa: ARG002  of the protocol
        yield from source.skip_space()
        if (yield from source.peek()) in ("[", "{"):
            yield from object_calls(source, calls)
            return
        name, stop = yield from source.collect(Stops("[ARGS]", "[CALL_ID]", "{"))
        call_id = None
        if stop == "[CALL_ID]":
            call_id, stop = yield from source.collect(Stops("[ARGS]", "{"))
        if not stop:
            raise MalformedCallError
        if stop == "{":
            source.unread(stop)
        yield from json_call(source, calls, name.strip(), call_id and call_id.strip())

    def rules(self, lark: Lark, schemas: Mapping[str, Mapping[str, Any]], *, has_one_call: bool) -> str:
        if not self.has_names:
            return JsonCalls(self.openers).rules(lark, schemas, has_one_call=has_one_call)
        heads = {name: lark.text(f"{self.openers[0]}{name}[ARGS]") for name in schemas}
        call = lark.either(f"{heads[name]} {lark.json(schema)}" for name, schema in schemas.items())
        return sequence(call, "", has_one_call=has_one_call)


@dataclass(frozen=True)
class Section(ABC):
    """Calls between two markers each, all of them between two more, with a third before the arguments of each."""

    section: tuple[str, str]
    call: tuple[str, str]
    separator: str
    between: str = ""  # calls

    @property
    def openers(self) -> tuple[str, ...]:
        return self.section[0], self.call[0]

    @property
    def markers(self) -> Sequence[str]:
        return *self.section, *self.call, self.separator

    def read(self, source: Source, opener: str, calls: Calls) -> Steps[None]:
        begin, end = self.call
        is_open = opener == begin
        num_before = calls.count
        while True:
            yield from source.skip_space()
            if not is_open and not (yield from source.take(begin)):
                break
            is_open = False
            head, stop = yield from source.collect(Stops(self.separator, end))
            if stop != self.separator:
                raise MalformedCallError
            name, call_id = yield from self._name(source, head.strip())
            yield from json_call(source, calls, name, call_id)
            yield from close(source, end)
            source.mark()
        if calls.count == num_before:
            raise MalformedCallError
        yield from source.take(self.section[1])
        source.unmark()

    def rules(self, lark: Lark, schemas: Mapping[str, Mapping[str, Any]], *, has_one_call: bool) -> str:
        begin, end = self.call
        call = lark.either(
            f"{lark.text(begin + before)} {lark.json(schema)} {lark.text(behind + end)}"
            for name, schema in schemas.items()
            for before, behind in [self._around(name)]
        )
        calls = sequence(call, lark.text(self.between), has_one_call=has_one_call)
        return f"{lark.text(self.section[0])} {calls} {lark.text(self.section[1])}"

    def _around(self, name: str) -> tuple[str, str]:
        """What stands within a call of a tool before its arguments and behind them."""
        return f"{name}{self.separator}", ""

    @abstractmethod
    def _name(self, source: Source, head: str) -> Steps[tuple[str, str | None]]:
        """A call's name and its id, if the model gives one, from what stands before the separator."""


@dataclass(frozen=True)
class DeepSeek(Section):
    """V3.1 has the name before the separator; V3 and R1 the type, then the name in a line, and JSON in a fence."""

    has_fence: bool = False

    def _around(self, name: str) -> tuple[str, str]:
        if not self.has_fence:
            return super()._around(name)
        return f"function{self.separator}{name}\n```json\n", "\n```"

    def _name(self, source: Source, head: str) -> Steps[tuple[str, str | None]]:
        if head != "function":
            return head, None
        name, _ = yield from source.collect(Stops("\n"))
        yield from source.take("```json")
        return name.strip(), None


@dataclass(frozen=True)
class Kimi(Section):
    """The id is written, and the name within it: ``functions.NAME:0``."""

    def _around(self, name: str) -> tuple[str, str]:
        return f"functions.{name}:0{self.separator}", ""

    def _name(self, source: Source, head: str) -> Steps[tuple[str, str | None]]:  # noqa: ARG002
        yield from ()
        return head.removeprefix("functions.").rpartition(":")[0] or head, head
