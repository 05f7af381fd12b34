"""Tool calls in Ollama's form, which sends each of them complete."""

import json
from typing import Any

from server.api.core.replies.deltas import ToolCallDelta
from server.engine.interface import JsonObject


def arguments_of(text: str) -> dict[str, Any] | None:
    """Parse the arguments of a call; None if they are no complete object, or one that JSON can't encode."""
    try:
        arguments = json.loads(text or "{}")
        json.dumps(arguments, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return None
    return arguments if isinstance(arguments, dict) else None


class CallAssembler:
    """Puts the parts of each tool call together."""

    def __init__(self) -> None:
        self._open: ToolCallDelta | None = None  # the first part of the open call
        self._arguments: list[str] = []

    def push(self, delta: ToolCallDelta) -> list[JsonObject]:
        """Add a part, and return the call before it if another begins."""
        calls: list[JsonObject] = []
        if self._open is None or self._open.index != delta.index:
            calls = self.close()
            self._open = delta
        self._arguments.append(delta.arguments)
        return calls

    def close(self, *, is_cut: bool = False) -> list[JsonObject]:
        """Return the open call, if there is one. A call whose arguments were cut is left out, as by Ollama."""
        call, text = self._open, "".join(self._arguments)
        self._open, self._arguments = None, []
        arguments = None if is_cut and not text else arguments_of(text)
        if call is None or (arguments is None and is_cut):
            return []
        function = {"index": call.index, "name": call.name, "arguments": arguments or {}}
        return [{"id": call.id, "function": function}]
