"""The conversation: messages and sampling parameters."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SETTABLE = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "max_tokens",
    "min_tokens",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "stop",
    "ignore_eos",
    "reasoning_effort",
    "priority",
    "timeout",
)


@dataclass
class Conversation:
    """System prompt, alternating messages of user and assistant, and sampling parameters."""

    model: str
    system: str = ""
    messages: list[dict[str, Any]] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

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
        body = {"model": self.model, "messages": [*self._system_message(), *self.messages], **self.options}
        with path.open("x", encoding="utf-8") as file:
            json.dump(body, file, ensure_ascii=False, indent=2)
            file.write("\n")

    def _system_message(self) -> list[dict[str, Any]]:
        return [{"role": "system", "content": self.system}] if self.system else []


def parse_value(text: str) -> Any:
    """Parse a parameter's value as JSON, or return the text unchanged; the server validates it."""
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        return text
    return value
