"""DeepSeek's tool calls, of V3 and R1, and of V3.1 and later."""

from dataclasses import dataclass

from server.api.tool_parsers.sections import Section
from server.api.tool_parsers.text_buffer import Steps, Stops, TextBuffer


@dataclass(frozen=True)
class DeepSeek(Section):
    """Reads both forms.

    V3.1 writes the name before the separator. V3 and R1 write the type before it, and after it a line with the name and
    the JSON in a code fence.

    Args:
        has_fence: the model writes the form of V3.

    """

    has_fence: bool = False

    def _around(self, name: str) -> tuple[str, str]:
        if not self.has_fence:
            return super()._around(name)
        return f"function{self.separator}{name}\n```json\n", "\n```"

    def _name(self, buffer: TextBuffer, head: str) -> Steps[tuple[str, str | None]]:
        if head != "function":
            return head, None
        name, _ = yield from buffer.collect(Stops("\n"))
        yield from buffer.take("```json")
        return name.strip(), None
