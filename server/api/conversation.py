"""A conversation as chat completions have it, put together from what other dialects say piece by piece."""

from collections.abc import Sequence

from server.api.openai.replies import JsonObject


def text_part(text: str) -> JsonObject:
    return {"type": "text", "text": text}


def image_part(url: str) -> JsonObject:
    return {"type": "image_url", "image_url": {"url": url}}


class Conversation:
    """Messages of a ``ChatBody``. What a role says in a row is one message: many templates want roles to alternate."""

    def __init__(self) -> None:
        self.messages: list[JsonObject] = []
        self._call_ids: set[str] = set()
        self._shown: JsonObject | None = None  # the message of the user that holds what tools have shown

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
        self._call_ids.add(call_id)

    def has_call(self, call_id: str) -> bool:
        return call_id in self._call_ids

    def answer_call(self, call_id: str, parts: Sequence[JsonObject]) -> None:
        """Add what a tool answered; its images follow behind all answers, for templates want tools to write alone."""
        texts = [part for part in parts if part["type"] == "text"]
        images = [part for part in parts if part["type"] != "text"]
        answer = {"role": "tool", "tool_call_id": call_id, "content": texts}
        is_shown = bool(self.messages) and self.messages[-1] is self._shown
        self.messages.insert(len(self.messages) - is_shown, answer)
        if images:
            if not is_shown:
                self._shown = {"role": "user", "content": []}
                self.messages.append(self._shown)
            self.messages[-1]["content"] += images

    def _message(self, role: str) -> JsonObject:
        """The last message if it is this role's, else a new one."""
        if not self.messages or self.messages[-1]["role"] != role:
            self.messages.append({"role": role, "content": []})
        return self.messages[-1]
