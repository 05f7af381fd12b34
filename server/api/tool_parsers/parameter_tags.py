"""Tool calls with a tag for each parameter, whose value is plain text: Qwen3-Coder, MiniMax."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.api.tool_parsers.argument_values import cut_json, encode, encode_within, is_text, typed_json
from server.api.tool_parsers.call_syntax import Calls, MalformedCallError
from server.api.tool_parsers.json_calls import object_calls
from server.api.tool_parsers.lark_grammar import LarkGrammar, optional, parameter, parameters_of, sequence
from server.api.tool_parsers.text_buffer import Steps, Stops, TextBuffer


class ArgumentWriter:
    """Writes the arguments of the last call as JSON, one after the other."""

    def __init__(self, calls: Calls, tool: str) -> None:
        self._calls, self._tool = calls, tool
        self._before = "{"

    def read(self, buffer: TextBuffer, name: str, stops: Stops) -> Steps[bool]:
        """Read the next value up to one of ``stops``; return False if none comes."""
        schema = self._calls.parameter_schema(self._tool, name)
        head = f"{self._before}{encode(name)}: "
        if not is_text(schema):
            raw, stop = yield from buffer.collect(stops, drops_cut_stop=True)
            value = cut_json(raw, schema) if buffer.is_cut and not stop else typed_json(raw, schema)
            if value is not None:
                self._before = ", "
                yield self._calls.more(head + value)
            return stop != ""
        self._before = ", "
        yield self._calls.more(head + '"')
        _, stop = yield from buffer.stream(
            stops, lambda text: self._calls.more(encode_within(text)), drops_cut_stop=True
        )
        yield self._calls.more('"')
        return stop != ""

    def end(self) -> Steps[None]:
        yield self._calls.more("{}" if self._before == "{" else "}")


@dataclass(frozen=True)
class ParameterTags:
    """Reads forms such as ``<function=f><parameter=p>value</parameter></function>`` or JSON, between two tags.

    Args:
        openers: the opening tag; the call's own tag is a second one if models leave out the first.
        closer: the closing tag.
        function: text before the name of a call, after the name, and at the end of the call.
        parameter: text before the name of a parameter, after the name, and at the end of the value.
        has_section: one pair of tags holds all calls.
        padding: text around the value of a parameter.

    """

    openers: tuple[str, ...]
    closer: str
    function: tuple[str, str, str]
    parameter: tuple[str, str, str]
    has_section: bool = False
    padding: str = ""

    @property
    def markers(self) -> Sequence[str]:
        return *self.openers, self.closer

    def read(self, buffer: TextBuffer, opener: str, calls: Calls) -> Steps[None]:
        before, _, _ = self.function
        if opener == before:
            yield from self._call(buffer, calls)
        else:
            yield from buffer.skip_space()
            if (yield from buffer.peek()) == "{":
                yield from object_calls(buffer, calls)
            else:
                yield from self._calls(buffer, calls)
        buffer.mark()
        yield from buffer.skip_space()
        if not (yield from buffer.take(self.closer)) and not buffer.is_cut_here:
            buffer.rewind()
        buffer.unmark()

    def rules(self, lark: LarkGrammar, schemas: Mapping[str, Mapping[str, Any]], *, has_one_call: bool) -> str:
        before, behind, end = self.function
        heads = {name: lark.text(f"{before}{name}{behind}\n") for name in schemas}
        call = lark.either(
            f"{heads[name]} {self._parameters(lark, schema)} {lark.text(end)}" for name, schema in schemas.items()
        )
        begin, newline, finish = lark.text(f"{self.openers[0]}\n"), lark.text("\n"), lark.text(f"\n{self.closer}")
        if self.has_section:
            return f"{begin} {sequence(call, newline, has_one_call=has_one_call)} {finish}"
        return sequence(f"{begin} {call} {finish}", newline, has_one_call=has_one_call)

    def _parameters(self, lark: LarkGrammar, schema: Mapping[str, Any]) -> str:
        before, behind, end = self.parameter
        newline, bodies = lark.text("\n"), []
        for name, each, is_required in parameters_of(schema):
            head = lark.text(f"{before}{name}{behind}{self.padding}")
            bodies.append(optional(f"{head} {parameter(lark, each, self.padding + end)} {newline}", is_required))
        return " ".join(bodies)

    def _calls(self, buffer: TextBuffer, calls: Calls) -> Steps[None]:
        before, _, _ = self.function
        num_before = calls.count
        while (yield from buffer.take(before)):
            yield from self._call(buffer, calls)
            yield from buffer.skip_space()
            buffer.mark()
        if calls.count == num_before:
            raise MalformedCallError

    def _call(self, buffer: TextBuffer, calls: Calls) -> Steps[None]:
        _, behind, end = self.function
        before_parameter, behind_parameter, end_parameter = self.parameter
        name, stop = yield from buffer.collect(Stops(behind, "\n"))
        if stop != behind:
            raise MalformedCallError
        yield calls.open(buffer, name.strip())
        arguments = ArgumentWriter(calls, name.strip())
        stops = Stops("\n" + end_parameter, end_parameter)
        while True:
            yield from buffer.skip_space()
            if not (yield from buffer.take(before_parameter)):
                break
            parameter, stop = yield from buffer.collect(Stops(behind_parameter))
            yield from buffer.take("\n")
            if not stop or not (yield from arguments.read(buffer, parameter.strip(), stops)):
                return
        if buffer.is_cut_here:
            return
        yield from arguments.end()
        yield from buffer.take(end)
