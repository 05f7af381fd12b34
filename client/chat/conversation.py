"""The conversation: messages and sampling parameters."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client.chat.parameters import ParameterError, check_parameter, parse_weight

AUTO = "auto"  # the model that stands for whatever the server chooses
ROLES = ("system", "user", "assistant", "tool")


class ConversationError(ValueError):
    """A file holds no conversation; the message says why."""


@dataclass
class Conversation:
    """System prompt, alternating messages of user and assistant, added adapters, and sampling parameters."""

    model: str
    system: str = ""
    messages: list[dict[str, Any]] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    adapters: dict[str, float] = field(default_factory=dict)  # weights of added adapters, by name

    @property
    def request_options(self) -> dict[str, Any]:
        """The members of a request besides model and messages.

        ``routing`` is for the model ``auto`` only, and a ``max_tokens`` of 0 stands for none.
        """
        added = [{"name": name, "weight": weight} for name, weight in self.adapters.items()]
        options = dict(self.options)
        if self.model != AUTO:
            options.pop("routing", None)
        if options.get("max_tokens") == 0:
            del options["max_tokens"]
        return {**options, **({"adapters": added} if added else {})}

    def messages_with(self, question: str) -> list[dict[str, Any]]:
        """Return the messages of the next request."""
        return [*self._system_message(), *self.messages, {"role": "user", "content": question}]

    def add(self, question: str, answer: dict[str, Any]) -> None:
        self.messages += [{"role": "user", "content": question}, answer]

    def save(self, path: Path) -> None:
        """Write messages and parameters as the JSON body of a request.

        Raises:
            OSError: If the file exists or cannot be written.
        """
        body = {"model": self.model, "messages": [*self._system_message(), *self.messages], **self.request_options}
        with path.open("x", encoding="utf-8") as file:
            json.dump(body, file, ensure_ascii=False, indent=2)
            file.write("\n")

    @classmethod
    def load(cls, path: Path) -> Conversation:
        """Read a conversation that ``save`` wrote.

        Raises:
            OSError: If the file cannot be read.
            ConversationError: If the file holds no conversation.
            ParameterError: If it has an unknown parameter, or a value of the wrong kind.
        """
        try:
            body = json.loads(path.read_text("utf-8"))
        except (ValueError, RecursionError) as error:
            raise ConversationError("it is not JSON; give a file that /save wrote") from error
        if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
            raise ConversationError("it has no messages; give a file that /save wrote")
        model, messages = body.pop("model", ""), body.pop("messages")
        adapters = _read_adapters(body.pop("adapters", []))
        for number, message in enumerate(messages, 1):
            if not isinstance(message, dict) or message.get("role") not in ROLES:
                raise ConversationError(f"message {number} has no role; give a file that /save wrote")
        for name, value in body.items():
            check_parameter(name, value)
        has_system = bool(messages) and messages[0]["role"] == "system"
        system = messages.pop(0).get("content") if has_system else ""
        if not isinstance(system, str) or not isinstance(model, str):
            raise ConversationError("its model or system prompt is no text; give a file that /save wrote")
        return cls(model, system, messages, body, adapters)

    def _system_message(self) -> list[dict[str, Any]]:
        return [{"role": "system", "content": self.system}] if self.system else []


def _read_adapters(value: Any) -> dict[str, float]:
    """Read the adapters of a conversation that ``save`` wrote.

    Raises:
        ConversationError: They are no adapters.
    """
    try:
        return {str(adapter["name"]): parse_weight(str(adapter["weight"])) for adapter in value}
    except (KeyError, TypeError, ParameterError) as error:
        raise ConversationError("its adapters are not names with weights; give a file that /save wrote") from error
