"""A conversation in the form of chat completions, built from the items or blocks of other dialects."""

from collections.abc import Sequence

from server.engine.interface import JsonObject


def text_part(text: str) -> JsonObject:
    return {"type": "text", "text": text}


def image_part(url: str) -> JsonObject:
    return {"type": "image_url", "image_url": {"url": url}}


class Conversation:
    """Messages of a ``ChatBody``.

    Successive content of one role becomes one message, because many templates require that roles alternate.
    """

    def __init__(self) -> None:
        self.messages: list[JsonObject] = []
        self._call_ids: set[str] = set()
        self._tool_images: JsonObject | None = None  # the user message that holds images from tool results

    def add_content(self, role: str, parts: Sequence[JsonObject]) -> None:
        self._message(role)["content"] += parts

    def add_reasoning(self, text: str) -> None:
        """Add reasoning of the assistant."""
        message = self._message("assistant")
        message["reasoning_content"] = message.get("reasoning_content", "") + text

    def add_tool_call(self, call_id: str, name: str, arguments: str) -> None:
        """Add a tool call; ``arguments`` are JSON."""
        function = {"name": name, "arguments": arguments}
        calls = self._message("assistant").setdefault("tool_calls", [])
        calls.append({"id": call_id, "type": "function", "function": function})
        self._call_ids.add(call_id)

    def has_tool_call(self, call_id: str) -> bool:
        return call_id in self._call_ids

    def add_tool_result(self, call_id: str, parts: Sequence[JsonObject]) -> None:
        """Add a tool's result. Its images go to a user message after all results: templates take only text of tools."""
        texts = [part for part in parts if part["type"] == "text"]
        images = [part for part in parts if part["type"] != "text"]
        result = {"role": "tool", "tool_call_id": call_id, "content": texts}
        has_images = bool(self.messages) and self.messages[-1] is self._tool_images
        self.messages.insert(len(self.messages) - has_images, result)
        if images:
            if not has_images:
                self._tool_images = {"role": "user", "content": []}
                self.messages.append(self._tool_images)
            self.messages[-1]["content"] += images

    def _message(self, role: str) -> JsonObject:
        """Return the last message if it has this role, else a new one."""
        if not self.messages or self.messages[-1]["role"] != role:
            self.messages.append({"role": role, "content": []})
        return self.messages[-1]
