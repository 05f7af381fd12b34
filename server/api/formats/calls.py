"""The calls of one turn while they are parsed."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import uuid4

from server.api.formats.lark import Lark
from server.api.formats.source import Source, Steps
from server.api.turn import ToolCallPiece

NAME = re.compile(r"[\w.:/-]{1,256}")


class MalformedCallError(Exception):
    """What follows is no call: it is read again, as text."""


def new_id() -> str:
    """An id in OpenAI's form."""
    return f"call_{uuid4().hex[:24]}"


@dataclass
class Calls:
    """Numbers the calls of a turn and makes their pieces.

    Args:
        schemas: of the arguments of each tool that may be called, by its name.
        new_id: makes the id of a call where the model gives none.

    """

    schemas: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    new_id: Callable[[], str] = new_id
    only_known: bool = False  # what has another name is no call
    count: int = 0

    def open(self, source: Source, name: str, call_id: str | None = None) -> ToolCallPiece:
        """A new call; from here on its text is not read again.

        Raises:
            MalformedCallError: no tool can have such a name.

        """
        if NAME.fullmatch(name) is None or (self.only_known and name not in self.schemas):
            raise MalformedCallError
        source.unmark()
        self.count += 1
        return ToolCallPiece(self.count - 1, id=call_id or self.new_id(), name=name)

    def more(self, arguments: str) -> ToolCallPiece:
        """Some of the arguments of the call opened last."""
        return ToolCallPiece(self.count - 1, arguments)

    def parameter_schema(self, tool: str, parameter: str) -> Mapping[str, Any]:
        """The schema of one of a tool's parameters; empty if it is not known."""
        properties = self.schemas.get(tool, {}).get("properties")
        schema = properties.get(parameter) if isinstance(properties, dict) else None
        return schema if isinstance(schema, dict) else {}


class CallSyntax(Protocol):
    """How a family of models writes calls."""

    @property
    def openers(self) -> Sequence[str]:
        """Texts that calls begin with; none if they are all that a turn says."""

    @property
    def markers(self) -> Sequence[str]:
        """Texts that may be special tokens, those that calls begin with among them."""

    def read(self, source: Source, opener: str, calls: Calls) -> Steps[None]:
        """Read the calls behind an opener, of which at least one must be well-formed.

        The source is marked before each call that may turn out to be none.

        Raises:
            MalformedCallError: what follows the mark is no call.

        """

    def rules(self, lark: Lark, schemas: Mapping[str, Mapping[str, Any]], *, has_one_call: bool) -> str:
        """What a turn has to be that calls some of these tools, by their names and the schemas of their arguments."""
