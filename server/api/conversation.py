"""A conversation as chat completions have it, put together from what other dialects say piece by piece."""

from collections.abc import Sequence
from typing import Any

JsonObject = dict[str, Any]


def text_part(text: str) -> JsonObject:
    return {"type": "text", "text": text}


def image_part(url: str) -> JsonObject:
    return {"type": "image_url", "image_url": {"url": url}}


class Conversation:
    """Messages of a ``ChatBody``. What a role says in a row is one message: many templates want roles to alternate."""

    def __init__(self) -> None:
        self.messages: list[JsonObject] = []

    def say(self, role: str, parts: Sequence[JsonObject]) -> None:
        """Add what a role says."""
        self._message(role)["content"] += parts

    def think(self, text: str) -> None:
        """Add what the assistant thought before it went on."""
        message = self._message("assistant")
        message["reasoning_content"] = message.get("reasoning_content", "") + text

    def call(self, call_id: str, name: str, arguments: str) -> None:
        """Add a call of a tool; ``arguments`` are JSON."""
        function = {"name": name, "arguments": arguments}
        calls = self._message("assistant").setdefault("tool_calls", [])
        calls.append({"id": call_id, "type": "function", "function": function})

    def answer_call(self, call_id: str, parts: Sequence[JsonObject]) -> None:
        """Add what a tool answered."""
        self.messages.append({"role": "tool", "tool_call_id": call_id, "content": [*parts]})

    def _message(self, role: str) -> JsonObject:
        """The last message if it is this role's, else a new one."""
        if not self.messages or self.messages[-1]["role"] != role:
            self.messages.append({"role": role, "content": []})
        return self.messages[-1]
