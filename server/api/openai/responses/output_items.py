"""Output items of a response, and the events for their growth."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from server.api.openai.responses.tools import FunctionName
from server.engine.interface import JsonObject


def event(kind: str, **fields: Any) -> JsonObject:
    return {"type": f"response.{kind}", **fields}


class OutputItem(ABC):
    """An item that grows until it is closed.

    Args:
        index: index of the item in the output.

    """

    id_prefix: str

    def __init__(self, index: int) -> None:
        self.id = f"{self.id_prefix}_{uuid4().hex}"
        self._index = index

    @abstractmethod
    def body(self, status: str) -> JsonObject:
        """Return the item as it is now; ``status`` is in_progress, completed or incomplete."""

    def opened(self) -> list[JsonObject]:
        """Return the events that open the item."""
        return [event("output_item.added", output_index=self._index, item=self.body("in_progress"))]

    def closed(self, status: str) -> list[JsonObject]:
        """Return the events that close the item."""
        return [event("output_item.done", output_index=self._index, item=self.body(status))]

    def _event(self, kind: str, **fields: Any) -> JsonObject:
        return event(kind, item_id=self.id, output_index=self._index, **fields)


class TextItem(OutputItem):
    """An item whose content is one text part."""

    part_type: str

    def __init__(self, index: int) -> None:
        super().__init__(index)
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
        """Add text."""
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
    """The reasoning of the assistant."""

    id_prefix, part_type = "rs", "reasoning_text"

    def body(self, status: str) -> JsonObject:
        return {"id": self.id, "type": "reasoning", "status": status, "summary": [], "content": self.content}


class MessageItem(TextItem):
    """The text of the assistant, and the logprobs of its tokens if the request asks for them."""

    id_prefix, part_type = "msg", "output_text"

    def __init__(self, index: int) -> None:
        super().__init__(index)
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
    """A tool call."""

    id_prefix = "fc"

    def __init__(self, index: int, call_id: str, name: FunctionName) -> None:
        super().__init__(index)
        self._call = {"call_id": call_id, **name.fields}
        self._arguments: list[str] = []

    def body(self, status: str) -> JsonObject:
        call = {**self._call, "arguments": "".join(self._arguments)}
        return {"id": self.id, "type": "function_call", "status": status, **call}

    def add(self, arguments: str) -> list[JsonObject]:
        """Add a part of the arguments' JSON."""
        self._arguments.append(arguments)
        return [self._event("function_call_arguments.delta", delta=arguments)]

    def closed(self, status: str) -> list[JsonObject]:
        done = self._event("function_call_arguments.done", arguments="".join(self._arguments), name=self._call["name"])
        return [done, *super().closed(status)]
