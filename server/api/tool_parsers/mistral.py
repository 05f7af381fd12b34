"""Mistral's tool calls: ``[TOOL_CALLS][{"name": ..., "arguments": ...}]``, or ``[TOOL_CALLS]name[ARGS]{...}``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.api.tool_parsers.call_syntax import Calls, MalformedCallError
from server.api.tool_parsers.json_calls import JsonCalls, json_call, object_calls
from server.api.tool_parsers.lark_grammar import LarkGrammar, sequence
from server.api.tool_parsers.text_buffer import Steps, Stops, TextBuffer


@dataclass(frozen=True)
class Mistral:
    """Reads both forms.

    Args:
        has_names: the model writes the second form.

    """

    has_names: bool = False
    openers: tuple[str, ...] = ("[TOOL_CALLS]",)

    @property
    def markers(self) -> Sequence[str]:
        return *self.openers, "[ARGS]", "[CALL_ID]"

    def read(self, buffer: TextBuffer, opener: str, calls: Calls) -> Steps[None]:  # noqa: ARG002  of the protocol
        yield from buffer.skip_space()
        if (yield from buffer.peek()) in ("[", "{"):
            yield from object_calls(buffer, calls)
            return
        name, stop = yield from buffer.collect(Stops("[ARGS]", "[CALL_ID]", "{"))
        call_id = None
        if stop == "[CALL_ID]":
            call_id, stop = yield from buffer.collect(Stops("[ARGS]", "{"))
        if not stop:
            raise MalformedCallError
        if stop == "{":
            buffer.unread(stop)
        yield from json_call(buffer, calls, name.strip(), call_id and call_id.strip())

    def rules(self, lark: LarkGrammar, schemas: Mapping[str, Mapping[str, Any]], *, has_one_call: bool) -> str:
        if not self.has_names:
            return JsonCalls(self.openers).rules(lark, schemas, has_one_call=has_one_call)
        heads = {name: lark.text(f"{self.openers[0]}{name}[ARGS]") for name in schemas}
        call = lark.either(f"{heads[name]} {lark.json(schema)}" for name, schema in schemas.items())
        return sequence(call, "", has_one_call=has_one_call)
