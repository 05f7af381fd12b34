"""What was said, and how the next answer is asked for."""

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
    """Turns of user and assistant by turns, the system's words before them, and sampling parameters."""

    model: str
    system: str = ""
    turns: list[dict[str, Any]] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    def messages_with(self, question: str) -> list[dict[str, Any]]:
        """The messages that ask for an answer."""
        return [*self._system_message(), *self.turns, {"role": "user", "content": question}]

    def add(self, question: str, answer: dict[str, Any]) -> None:
        self.turns += [{"role": "user", "content": question}, answer]

    def save(self, path: Path) -> None:
        """Write messages and parameters as JSON, as a request has them.

        Raises:
            OSError: the file is there already, or can't be written.
        """
        body = {"model": self.model, "messages": [*self._system_message(), *self.turns], **self.options}
        with path.open("x", encoding="utf-8") as file:
            json.dump(body, file, ensure_ascii=False, indent=2)
            file.write("\n")

    def _system_message(self) -> list[dict[str, Any]]:
        return [{"role": "system", "content": self.system}] if self.system else []


def value_of(text: str) -> Any:
    """A parameter's value as it was typed: JSON, or else text, which the server may refuse."""
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        return text
    return value
