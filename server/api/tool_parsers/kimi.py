"""Kimi's tool calls, whose ids contain the names: ``functions.NAME:0``."""

from dataclasses import dataclass

from server.api.tool_parsers.sections import Section
from server.api.tool_parsers.text_buffer import Steps, TextBuffer


@dataclass(frozen=True)
class Kimi(Section):
    """Reads the name of a call from its id."""

    def _around(self, name: str) -> tuple[str, str]:
        return f"functions.{name}:0{self.separator}", ""

    def _name(self, buffer: TextBuffer, head: str) -> Steps[tuple[str, str | None]]:  # noqa: ARG002
        yield from ()
        return head.removeprefix("functions.").rpartition(":")[0] or head, head
