"""Calls between markers that are tokens of their own: Mistral, DeepSeek, Kimi."""

from dataclasses import dataclass

from server.api.formats.calls import Calls, MalformedCallError
from server.api.formats.json_calls import close, json_call, object_calls
from server.api.formats.source import Source, Steps, Stops


@dataclass(frozen=True)
class Mistral:
    """``[TOOL_CALLS][{"name": ..., "arguments": ...}]``, or ``[TOOL_CALLS]name[ARGS]{...}``."""

    openers: tuple[str, ...] = ("[TOOL_CALLS]",)

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


@dataclass(frozen=True)
class Section:
    """Calls between two markers each, all of them between two more, with a third before the arguments of each."""

    section: tuple[str, str]
    call: tuple[str, str]
    separator: str

    @property
    def openers(self) -> tuple[str, ...]:
        return self.section[0], self.call[0]

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

    def _name(self, source: Source, head: str) -> Steps[tuple[str, str | None]]:
        """A call's name and its id, if the model gives one, from what stands before the separator."""
        raise NotImplementedError


class DeepSeek(Section):
    """V3.1 has the name before the separator; V3 and R1 the type, then the name in a line, and JSON in a fence."""

    def _name(self, source: Source, head: str) -> Steps[tuple[str, str | None]]:
        if head != "function":
            return head, None
        name, _ = yield from source.collect(Stops("\n"))
        yield from source.take("```json")
        return name.strip(), None


class Kimi(Section):
    """The id is written, and the name within it: ``functions.NAME:0``."""

    def _name(self, source: Source, head: str) -> Steps[tuple[str, str | None]]:  # noqa: ARG002
        yield from ()
        return head.removeprefix("functions.").rpartition(":")[0] or head, head
