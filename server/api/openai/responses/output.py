"""Items of a response's output as they grow, and the events that tell of it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from server.api.openai.replies import JsonObject


def event(kind: str, **fields: Any) -> JsonObject:
    return {"type": f"response.{kind}", **fields}


class OutputItem(ABC):
    """An item that grows until it is closed.

    Args:
        place: among the items of the output.

    """

    id_prefix: str

    def __init__(self, place: int) -> None:
        self.id = f"{self.id_prefix}_{uuid4().hex}"
        self._place = place

    @abstractmethod
    def body(self, status: str) -> JsonObject:
        """The item as it is; ``status`` is in_progress, completed or incomplete."""

    def opened(self) -> list[JsonObject]:
        """Events to send before all others of the item."""
        return [event("output_item.added", output_index=self._place, item=self.body("in_progress"))]

    def closed(self, status: str) -> list[JsonObject]:
        """Events to send after all others of the item."""
        return [event("output_item.done", output_index=self._place, item=self.body(status))]

    def _event(self, kind: str, **fields: Any) -> JsonObject:
        return event(kind, item_id=self.id, output_index=self._place, **fields)


class TextItem(OutputItem):
    """An item whose content is one part of text."""

    part_type: str

    def __init__(self, place: int) -> None:
        super().__init__(place)
        self._has_part = False
        self._texts: list[str] = []

    @property
    def content(self) -> list[JsonObject]:
        return [self._part("".join(self._texts))] if self._has_part else []

    def opened(self) -> list[JsonObject]:
        added = super().opened()
        self._has_part = True
        return [*added, self._event("content_part.added", content_index=0, part=self._part(""))]

    def add(self, text: str) -> list[JsonObject]:
        """Go on with some text."""
        self._texts.append(text)
        return [self._text_event("delta", delta=text)]

    def closed(self, status: str) -> list[JsonObject]:
        (part,) = self.content
        return [
            self._text_event("done", text=part["text"]),
            self._event("content_part.done", content_index=0, part=part),
            *super().closed(status),
        ]

    def _text_event(self, kind: str, **fields: Any) -> JsonObject:
        return self._event(f"{self.part_type}.{kind}", content_index=0, **fields)

    def _part(self, text: str) -> JsonObject:
        return {"type": self.part_type, "text": text}


class ReasoningItem(TextItem):
    """What the assistant thinks before it speaks."""

    id_prefix, part_type = "rs", "reasoning_text"

    def body(self, status: str) -> JsonObject:
        return {"id": self.id, "type": "reasoning", "status": status, "summary": [], "content": self.content}


class MessageItem(TextItem):
    """What the assistant says, and the logprobs of its tokens if they are asked for."""

    id_prefix, part_type = "msg", "output_text"

    def __init__(self, place: int) -> None:
        super().__init__(place)
        self._logprobs: list[JsonObject] = []

    def body(self, status: str) -> JsonObject:
        return {"id": self.id, "type": "message", "status": status, "role": "assistant", "content": self.content}

    def add(self, text: str, logprobs: Sequence[JsonObject] = ()) -> list[JsonObject]:
        self._logprobs += logprobs
        (delta,) = super().add(text)
        return [delta | {"logprobs": [*logprobs]}]

    def closed(self, status: str) -> list[JsonObject]:
        done, *others = super().closed(status)
        return [done | {"logprobs": self._logprobs}, *others]

    def _part(self, text: str) -> JsonObject:
        return super()._part(text) | {"annotations": [], "logprobs": self._logprobs}


class FunctionCallItem(OutputItem):
    """A call of a tool."""

    id_prefix = "fc"

    def __init__(self, place: int, call_id: str, name: str) -> None:
        super().__init__(place)
        self._call = {"call_id": call_id, "name": name}
        self._arguments: list[str] = []

    def body(self, status: str) -> JsonObject:
        call = {**self._call, "arguments": "".join(self._arguments)}
        return {"id": self.id, "type": "function_call", "status": status, **call}

    def add(self, arguments: str) -> list[JsonObject]:
        """Go on with some of the arguments' JSON."""
        self._arguments.append(arguments)
        return [self._event("function_call_arguments.delta", delta=arguments)]

    def closed(self, status: str) -> list[JsonObject]:
        done = self._event("function_call_arguments.done", arguments="".join(self._arguments), name=self._call["name"])
        return [done, *super().closed(status)]
