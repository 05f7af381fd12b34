"""GLM's tool calls: ``<tool_call>f<arg_key>k</arg_key><arg_value>v</arg_value></tool_call>``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.api.tool_parsers.call_syntax import Calls, MalformedCallError
from server.api.tool_parsers.json_calls import close
from server.api.tool_parsers.lark_grammar import LarkGrammar, optional, parameter, parameters_of, sequence
from server.api.tool_parsers.parameter_tags import ArgumentWriter
from server.api.tool_parsers.text_buffer import Steps, Stops, TextBuffer


@dataclass(frozen=True)
class Glm:
    """Reads calls with line breaks between the tags or without."""

    openers: tuple[str, ...] = ("<tool_call>",)
    closer: str = "</tool_call>"

    @property
    def markers(self) -> Sequence[str]:
        return *self.openers, self.closer, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"

    def read(self, buffer: TextBuffer, opener: str, calls: Calls) -> Steps[None]:  # noqa: ARG002  of the protocol
        yield from buffer.skip_space()
        name, stop = yield from buffer.collect(Stops("\n", "<arg_key>", self.closer))
        if not stop and buffer.is_cut:
            raise MalformedCallError
        yield calls.open(buffer, name.strip())
        arguments = ArgumentWriter(calls, name.strip())
        is_key = stop == "<arg_key>"
        while stop != self.closer:
            yield from buffer.skip_space()
            if not is_key and not (yield from buffer.take("<arg_key>")):
                break
            is_key = False
            key, stop = yield from buffer.collect(Stops("</arg_key>"))
            yield from buffer.skip_space()
            if not (yield from buffer.take("<arg_value>")):
                return
            if not (yield from arguments.read(buffer, key.strip(), Stops("</arg_value>"))):
                return
        if stop != self.closer and buffer.is_cut_here:
            return
        yield from arguments.end()
        if stop != self.closer:
            yield from close(buffer, self.closer)

    def rules(self, lark: LarkGrammar, schemas: Mapping[str, Mapping[str, Any]], *, has_one_call: bool) -> str:
        newline, end = lark.text("\n") + "?", lark.text(self.closer)
        heads = {name: lark.text(self.openers[0] + name) for name in schemas}
        call = lark.either(
            f"{heads[name]} {newline} {self._parameters(lark, schema)} {end}" for name, schema in schemas.items()
        )
        return sequence(call, newline, has_one_call=has_one_call)

    @staticmethod
    def _parameters(lark: LarkGrammar, schema: Mapping[str, Any]) -> str:
        newline, bodies = lark.text("\n") + "?", []
        for name, each, is_required in parameters_of(schema):
            head = f"{lark.text(f'<arg_key>{name}</arg_key>')} {newline} {lark.text('<arg_value>')}"
            bodies.append(optional(f"{head} {parameter(lark, each, '</arg_value>')} {newline}", is_required))
        return " ".join(bodies)
