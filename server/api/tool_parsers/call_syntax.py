"""The protocol for the syntax of tool calls, and the calls of one turn while they are parsed."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import uuid4

from server.api.core.replies.deltas import ToolCallDelta
from server.api.tool_parsers.lark_grammar import LarkGrammar
from server.api.tool_parsers.text_buffer import Steps, TextBuffer

NAME = re.compile(r"[\w.:/-]{1,256}")


class MalformedCallError(Exception):
    """The text is not a call: the parser rewinds and reads it as text."""


def new_id() -> str:
    """Return an id in OpenAI's form."""
    return f"call_{uuid4().hex[:24]}"


@dataclass
class Calls:
    """Numbers the calls of a turn, and makes their deltas.

    Args:
        schemas: schemas of the arguments by tool name.
        new_id: makes the id of a call if the model gives none.
        only_known: a call with another name is not a call.
        count: number of calls so far.

    """

    schemas: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    new_id: Callable[[], str] = new_id
    only_known: bool = False
    count: int = 0

    def open(self, buffer: TextBuffer, name: str, call_id: str | None = None) -> ToolCallDelta:
        """Begin a call; the parser does not rewind any more.

        Raises:
            MalformedCallError: the name is not valid.

        """
        if NAME.fullmatch(name) is None or (self.only_known and name not in self.schemas):
            raise MalformedCallError
        buffer.unmark()
        self.count += 1
        return ToolCallDelta(self.count - 1, id=call_id or self.new_id(), name=name)

    def more(self, arguments: str) -> ToolCallDelta:
        """Add arguments to the last call."""
        return ToolCallDelta(self.count - 1, arguments)

    def parameter_schema(self, tool: str, parameter: str) -> Mapping[str, Any]:
        """Return the schema of a parameter; empty if it is unknown."""
        properties = self.schemas.get(tool, {}).get("properties")
        schema = properties.get(parameter) if isinstance(properties, dict) else None
        return schema if isinstance(schema, dict) else {}


class CallSyntax(Protocol):
    """The syntax in which a family of models writes tool calls."""

    @property
    def openers(self) -> Sequence[str]:
        """Texts that calls begin with. If there are none, a turn is either calls or text."""

    @property
    def markers(self) -> Sequence[str]:
        """Texts of the syntax that may be special tokens, including the openers."""

    def read(self, buffer: TextBuffer, opener: str, calls: Calls) -> Steps[None]:
        """Read the calls after an opener; at least one must be well-formed.

        The buffer is marked before each text that may turn out not to be a call.

        Raises:
            MalformedCallError: the text after the mark is not a call.

        """

    def rules(self, lark: LarkGrammar, schemas: Mapping[str, Mapping[str, Any]], *, has_one_call: bool) -> str:
        """Return the grammar rule of a turn that calls some of these tools, given their names and argument schemas."""
