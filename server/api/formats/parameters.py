"""Calls whose arguments are written one by one between tags, as text: Qwen3-Coder, MiniMax, GLM."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.api.formats.calls import Calls, MalformedCallError
from server.api.formats.json_calls import close, object_calls
from server.api.formats.lark import Lark, optional, parameter, parameters_of, sequence
from server.api.formats.source import Source, Steps, Stops
from server.api.formats.values import encode, encode_within, is_text, typed_json


class ArgumentWriter:
    """Writes the arguments of the call opened last, one after the other."""

    def __init__(self, calls: Calls, tool: str) -> None:
        self._calls, self._tool = calls, tool
        self._before = "{"

    def read(self, source: Source, name: str, stops: Stops) -> Steps[bool]:
        """Read the value that comes next, up to one of some stops; False if that never comes."""
        schema = self._calls.parameter_schema(self._tool, name)
        head, self._before = f"{self._before}{encode(name)}: ", ", "
        if not is_text(schema):
            raw, stop = yield from source.collect(stops)
            yield self._calls.more(head + typed_json(raw, schema))
            return stop != ""
        yield self._calls.more(head + '"')
        _, stop = yield from source.stream(stops, lambda text: self._calls.more(encode_within(text)))
        yield self._calls.more('"')
        return stop != ""

    def end(self) -> Steps[None]:
        yield self._calls.more("{}" if self._before == "{" else "}")


@dataclass(frozen=True)
class ParameterTags:
    """``<function=f><parameter=p>value</parameter></function>`` and its like, between two tags.

    Where JSON stands between the two tags instead, that is read.
    """

    openers: tuple[str, ...]
    closer: str
    function: tuple[str, str, str]  # before a call's name, behind it, and at its end
    parameter: tuple[str, str, str]  # the same of a parameter
    has_section: bool = False  # whether one pair of tags holds all calls
    padding: str = ""  # around a parameter's value

    @property
    def markers(self) -> Sequence[str]:
        return *self.openers, self.closer

    def read(self, source: Source, opener: str, calls: Calls) -> Steps[None]:
        before, _, _ = self.function
        if opener == before:
            yield from self._call(source, calls)
        else:
            yield from source.skip_space()
            if (yield from source.peek()) == "{":
                yield from object_calls(source, calls)
            else:
                yield from self._calls(source, calls)
        source.mark()
        yield from source.skip_space()
        if not (yield from source.take(self.closer)):
            source.rewind()
        source.unmark()

    def rules(self, lark: Lark, schemas: Mapping[str, Mapping[str, Any]], *, has_one_call: bool) -> str:
        before, behind, end = self.function
        heads = {name: lark.text(f"{before}{name}{behind}\n") for name in schemas}
        call = lark.either(
            f"{heads[name]} {self._parameters(lark, schema)} {lark.text(end)}" for name, schema in schemas.items()
        )
        begin, newline, finish = lark.text(f"{self.openers[0]}\n"), lark.text("\n"), lark.text(f"\n{self.closer}")
        if self.has_section:
            return f"{begin} {sequence(call, newline, has_one_call=has_one_call)} {finish}"
        return sequence(f"{begin} {call} {finish}", newline, has_one_call=has_one_call)

    def _parameters(self, lark: Lark, schema: Mapping[str, Any]) -> str:
        before, behind, end = self.parameter
        newline, bodies = lark.text("\n"), []
        for name, each, is_required in parameters_of(schema):
            head = lark.text(f"{before}{name}{behind}{self.padding}")
            bodies.append(optional(f"{head} {parameter(lark, each, self.padding + end)} {newline}", is_required))
        return " ".join(bodies)

    def _calls(self, source: Source, calls: Calls) -> Steps[None]:
        before, _, _ = self.function
        num_before = calls.count
        while (yield from source.take(before)):
            yield from self._call(source, calls)
            yield from source.skip_space()
            source.mark()
        if calls.count == num_before:
            raise MalformedCallError

    def _call(self, source: Source, calls: Calls) -> Steps[None]:
        _, behind, end = self.function
        before_parameter, behind_parameter, end_parameter = self.parameter
        name, stop = yield from source.collect(Stops(behind, "\n"))
        if stop != behind:
            raise MalformedCallError
        yield calls.open(source, name.strip())
        arguments = ArgumentWriter(calls, name.strip())
        stops = Stops("\n" + end_parameter, end_parameter)
        while True:
            yield from source.skip_space()
            if not (yield from source.take(before_parameter)):
                break
            parameter, stop = yield from source.collect(Stops(behind_parameter))
            yield from source.take("\n")
            if not stop or not (yield from arguments.read(source, parameter.strip(), stops)):
                return
        yield from arguments.end()
        yield from source.take(end)


@dataclass(frozen=True)
class KeyValueTags:
    """GLM's ``<tool_call>f<arg_key>k</arg_key><arg_value>v</arg_value></tool_call>``, with line breaks or without."""

    openers: tuple[str, ...] = ("<tool_call>",)
    closer: str = "</tool_call>"

    @property
    def markers(self) -> Sequence[str]:
        return *self.openers, self.closer, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"

    def read(self, source: Source, opener: str, calls: Calls) -> Steps[None]:  # noqa: ARG002  of the protocol
        yield from source.skip_space()
        name, stop = yield from source.collect(Stops("\n", "<arg_key>", self.closer))
        yield calls.open(source, name.strip())
        arguments = ArgumentWriter(calls, name.strip())
        is_key = stop == "<arg_key>"
        while stop != self.closer:
            yield from source.skip_space()
            if not is_key and not (yield from source.take("<arg_key>")):
                break
            is_key = False
            key, stop = yield from source.collect(Stops("</arg_key>"))
            yield from source.skip_space()
            if not (yield from source.take("<arg_value>")):
                return
            if not (yield from arguments.read(source, key.strip(), Stops("</arg_value>"))):
                return
        yield from arguments.end()
        if stop != self.closer:
            yield from close(source, self.closer)

    def rules(self, lark: Lark, schemas: Mapping[str, Mapping[str, Any]], *, has_one_call: bool) -> str:
        newline, end = lark.text("\n") + "?", lark.text(self.closer)
        heads = {name: lark.text(self.openers[0] + name) for name in schemas}
        call = lark.either(
            f"{heads[name]} {newline} {self._parameters(lark, schema)} {end}" for name, schema in schemas.items()
        )
        return sequence(call, newline, has_one_call=has_one_call)

    @staticmethod
    def _parameters(lark: Lark, schema: Mapping[str, Any]) -> str:
        newline, bodies = lark.text("\n") + "?", []
        for name, each, is_required in parameters_of(schema):
            head = f"{lark.text(f'<arg_key>{name}</arg_key>')} {newline} {lark.text('<arg_value>')}"
            bodies.append(optional(f"{head} {parameter(lark, each, '</arg_value>')} {newline}", is_required))
        return " ".join(bodies)
